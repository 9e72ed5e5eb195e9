"""Typed settings: their base, what several plugins share, and those that no plugin owns."""
