"""The state between steps, and the forms that it can be kept in."""
