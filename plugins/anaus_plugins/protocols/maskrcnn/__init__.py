"""Maskrcnn."""
