"""What a user asks for: one cell of the benchmark."""
