"""What rules ask of a graph: numbers, operands, sums, means, proofs of a value's range."""
