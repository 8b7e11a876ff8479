"""XLA executables: made, and read back as traffic, collectives and time."""
