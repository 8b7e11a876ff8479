"""Which dimensions are the same axis, and what each one is called."""
