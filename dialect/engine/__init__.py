"""The engine: requests served by a decoder on a mesh. What decides is `dialect.serving`."""
