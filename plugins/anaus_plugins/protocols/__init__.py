"""Protocols, one module or package each."""
