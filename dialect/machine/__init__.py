"""Chips, and what joins them."""
