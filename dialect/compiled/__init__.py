"""XLA: what is known of the compilers; executables, made, and read back as traffic, collectives
and time."""
