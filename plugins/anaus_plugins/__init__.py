"""The built-in plugins: one module each, named as on the command line."""
