"""Label maps: connected regions and contiguous ids."""

from __future__ import annotations
