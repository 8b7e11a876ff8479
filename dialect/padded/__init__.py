"""Axes made longer, and what becomes of the zeros."""
