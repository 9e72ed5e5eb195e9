"""Learning-rate schedules, as functions of the step."""

from __future__ import annotations

import math


def warmup_cosine(step: int, steps: int, warmup_steps: int, base: float, end: float = 0.0) -> float:
    """Linear from 0 at step 0 to `base` at `warmup_steps`, then half a cosine to `end` at `steps`."""
    if step < warmup_steps:
        return base * step / warmup_steps
    progress = (step - warmup_steps) / max(1, steps - warmup_steps)
    return end + (base - end) * (1 + math.cos(math.pi * min(progress, 1.0))) / 2
