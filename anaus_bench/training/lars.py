"""LARS (You et al. 2017, arXiv:1708.03888) as BYOL uses it: a trust ratio per weight, none for biases and norms."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Literal, overload

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Convention = Literal["standard", "official"]


def parameter_groups(module: nn.Module, *, decay_norms: bool = False) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: weights, and those of one dimension, others of 1 aside, or none.

    The latter (biases, scale and offset of norms, single tokens) have no trust ratio, and no weight decay unless
    `decay_norms`. The parameters of target networks (`requires_grad` False) are in neither. The groups also suit other
    optimisers, which ignore `adapt`; `decayed` says which a schedule of the weight decay is for.
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    weights = [p for p in trained if p.squeeze().ndim > 1]
    others = [p for p in trained if p.squeeze().ndim <= 1]
    return [
        {"params": weights, "adapt": True, "decayed": True},
        {"params": others, "adapt": False, "decayed": decay_norms, **({} if decay_norms else {"weight_decay": 0.0})},
    ]


class LARS(Optimizer):
    """Momentum SGD whose step on a weight w with gradient g is scaled by a trust ratio, 1 where a norm is 0.

    `standard` (You et al., BYOL): g' = g + wd w, trust = eta |w| / |g'|, m <- momentum m + trust g', w <- w - lr m.
    `official` (AnaUS code): trust = eta |w| / (|g| + wd |w|), m <- momentum m + lr trust g', w <- w - m: the rate of
    each step stays with its gradient.

    Args:
        params: Parameters, or groups such as those of `parameter_groups`; `adapt` False switches the ratio off.
        lr: Learning rate.
        momentum: Of the buffer m.
        weight_decay: wd.
        trust_coefficient: eta.
        convention: See above.
    """

    def __init__(
        self,
        params: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        convention: Convention = "standard",
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "convention": convention,
            "adapt": True,
        }
        super().__init__(params, defaults)

    @overload
    def step(self, closure: None = None) -> None: ...

    @overload
    def step(self, closure: Callable[[], float]) -> float: ...

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters that have a gradient; returns the closure's loss, if there is one."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [parameter for parameter in group["params"] if parameter.grad is not None]
            if params:
                self._update(params, group)
        return loss

    def _update(self, params: list[Tensor], group: dict[str, Any]) -> None:
        gradients = [parameter.grad for parameter in params if parameter.grad is not None]
        official = group["convention"] == "official"
        directions = gradients
        if group["weight_decay"] != 0:
            directions = list(torch._foreach_add(gradients, params, alpha=group["weight_decay"]))
        if group["adapt"]:
            ratios = _trust_ratios(params, gradients if official else directions, group, official)
            directions = list(torch._foreach_mul(directions, list(ratios)))

        buffers = [self._buffer(parameter) for parameter in params]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, directions, alpha=group["lr"] if official else 1)
        torch._foreach_add_(params, buffers, alpha=-1 if official else -group["lr"])

    def _buffer(self, parameter: Tensor) -> Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        buffer: Tensor = state["momentum_buffer"]
        return buffer


def _trust_ratios(params: list[Tensor], directions: list[Tensor], group: dict[str, Any], official: bool) -> Tensor:
    """(P,) float32, one ratio per parameter."""
    weights = torch.stack(torch._foreach_norm(params))
    lengths = torch.stack(torch._foreach_norm(directions))
    denominator = lengths + group["weight_decay"] * weights if official else lengths
    usable = (weights > 0) & (lengths > 0)
    return torch.where(usable, group["trust_coefficient"] * weights / denominator.where(usable, 1.0), 1.0)
