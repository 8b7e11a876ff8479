"""The decoder's own ops, one idea a file: attention, rotary embedding, caches, heads ..."""
