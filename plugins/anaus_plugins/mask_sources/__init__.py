"""Built-in mask sources."""
