"""Seeds of steps: every random draw is a function of (seed, step)."""

from __future__ import annotations


def step_seed(seed: int, step: int) -> int:
    """A seed in [0, 2**63) from (seed, step) by a fixed mixing function (splitmix64), the same on every platform."""
    mixed = (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) >> 1
