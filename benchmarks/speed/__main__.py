"""All speed figures as one JSON object: `python -m benchmarks.speed`. Ratios within one run; see each module."""

from __future__ import annotations

import argparse
import datetime
import json
from typing import Any

import torch

from benchmarks.speed import masks, prepare, steps, views
from benchmarks.speed.timing import machine

PARTS = ["views", "prepare", "steps", "masks"]


def main() -> None:
    """Prints the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--batch", type=int, default=8, help="images per training step")
    parser.add_argument("--size", type=int, default=224, help="side of the views")
    parser.add_argument("--repeats", type=int, default=5, help="rounds, of which the median is taken")
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--methods", nargs="+", default=sorted(steps.PASSES), help="objectives to time")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    given = parser.parse_args()
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "machine": machine(torch.device(given.device)),
        "settings": {name: getattr(given, name) for name in ("batch", "size", "repeats", "precision")},
    }
    if "views" in given.only:
        found["views"] = views.measure(repeats=given.repeats)
    if "prepare" in given.only:
        found["prepare"] = prepare.measure()
    if "steps" in given.only:
        found["steps"] = [
            steps.measure(method, given.batch, given.size, given.device, given.repeats, given.precision)
            for method in given.methods
        ]
    if "masks" in given.only:
        found["masks"] = masks.measure(repeats=given.repeats, device=given.device)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
