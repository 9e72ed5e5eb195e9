"""From a cell to its stages and their keys."""
