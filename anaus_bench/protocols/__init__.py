"""Downstream protocols that tasks share."""
