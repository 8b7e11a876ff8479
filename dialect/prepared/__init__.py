"""Packed parameters: made in parts, kept in files, given to a step."""
