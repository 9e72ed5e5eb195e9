"""What an author of a plugin needs: checks and synthetic data."""
