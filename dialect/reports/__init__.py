"""What people read of a program: what was recognised, planned, quantised and compiled."""
