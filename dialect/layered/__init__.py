"""The repeated layers of a decoder: written out, or in a loop."""
