"""What a user hands in: a function, a file that has it, rules as text."""
