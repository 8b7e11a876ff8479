"""Accuracy, measured on a text."""
