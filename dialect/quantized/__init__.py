"""Quantised weights: recognised, chosen by parameter, multiplied as they are stored."""
