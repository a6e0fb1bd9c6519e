"""Measure threadline beside the stores people use today, in one run, on the same texts."""
