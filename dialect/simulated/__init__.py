"""The scheduler with a clock: loads, how long steps take, and what would become of a load."""
