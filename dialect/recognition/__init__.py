"""How others spell norms, attention, rope, activations and cache writes: rules that find them."""
