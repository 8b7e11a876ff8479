"""Which dimensions are the same axis, and what they are called."""
