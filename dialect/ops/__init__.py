"""Declarations: every op that a program may hold, with its reference and its axes."""
