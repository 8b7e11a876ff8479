"""Packed parameters and state: made in parts, kept in files, given to a step."""
