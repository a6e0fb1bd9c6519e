"""Bring conversations in from elsewhere: one module for each form they come in."""
