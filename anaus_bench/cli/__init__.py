"""The command, one module per group of its words."""
