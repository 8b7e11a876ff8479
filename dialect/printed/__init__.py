"""Programs as people read them: names, folded layers, differences. It is not read back."""
