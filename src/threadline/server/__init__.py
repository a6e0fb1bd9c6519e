"""A session service behind HTTP; `app.create_app` makes it."""
