"""From logits to tokens: who may be chosen, and who is; plain functions of arrays."""
