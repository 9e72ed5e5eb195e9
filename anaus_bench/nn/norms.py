"""Running statistics of batch norm, kept from what they should not see."""

from __future__ import annotations
