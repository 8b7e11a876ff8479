"""What a terminal shows: tables, quantities with units, progress."""
