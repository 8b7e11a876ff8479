"""From logits to tokens: which may be chosen, which is, which drafts stand; plain functions."""
