"""Where sessions are stored: one engine per database, all behind `base.Engine`."""
