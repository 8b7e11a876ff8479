"""What depends on parameters alone, and moves from the step to `prepare`."""
