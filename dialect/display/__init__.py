"""Terminal output: tables, quantities with units, progress."""
