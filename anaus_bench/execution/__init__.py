"""Where stages run, and what their records say of it."""
