"""`torch`, `nn`, `F` and PIL's `Image`, imported at first use.

`list`, `show` and `plan` import plugin modules to read their settings and must answer at once, while torch takes
seconds to import, and PIL a noticeable part of one. A plugin writes `from anaus_bench.lazy import F, nn, torch` and may
otherwise use them as ever, except at module level (`class Net(nn.Module)`, `@torch.no_grad()`), which would import
torch with the module.
"""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch as torch
    import torch.nn.functional as F
    from PIL import Image as Image
    from torch import nn as nn
else:

    class _LazyModule(ModuleType):
        def __getattr__(self, name: str) -> Any:
            return getattr(importlib.import_module(self.__name__), name)

    torch = _LazyModule("torch")
    nn = _LazyModule("torch.nn")
    F = _LazyModule("torch.nn.functional")
    Image = _LazyModule("PIL.Image")

__all__ = ["F", "Image", "nn", "torch"]
