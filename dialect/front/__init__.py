"""The front door: the decorator, the step it returns, and the command line. Nothing imports it."""
