"""Where random numbers come from: every draw is a function of (seed, use, step)."""

from __future__ import annotations

import hashlib


def stream(seed: int, use: str, *numbers: int) -> int:
    """Seed in [0, 2**63) of one stream of random numbers, such as `stream(seed, "views", step)`.

    Streams that differ in use or numbers share none of their draws. The same on every platform.

    Args:
        seed: Seed of the run, or of the stream that this one is a part of.
        use: What is drawn.
        numbers: Which of its streams: the step, the epoch, the process.
    """
    mixed = int.from_bytes(hashlib.blake2b(use.encode(), digest_size=8).digest(), "little")
    for number in (seed, *numbers):
        mixed = _mix(mixed, number)
    return mixed


def _mix(seed: int, number: int) -> int:
    """A number in [0, 2**63) from two, by a fixed function (splitmix64)."""
    mixed = (seed * 0x9E3779B97F4A7C15 + number * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**64
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EB % 2**64
    return (mixed ^ (mixed >> 31)) >> 1
