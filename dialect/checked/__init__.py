"""Checks of what rewrites claim to keep: results compared, failing programs reduced."""
