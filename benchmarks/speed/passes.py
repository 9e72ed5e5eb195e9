"""The passes of a loss through networks: recorded while it is computed, counted, run bare, or given back unrun.

A pass is the outermost call of a module that belongs to the networks. So whatever a method asks of its encoders is
found, waste as well: the counts are printed beside the ratios, and tests hold them against what each method must pass.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only


@dataclass(frozen=True)
class Call:
    """One recorded call; tensors are leaves that require gradients where the originals did.

    Attributes:
        module: What was called.
        in_encoder: Whether it belongs to an encoder, else to another network (projector, predictor, decoder).
        args, kwargs: With what.
        result: What came back.
    """

    module: nn.Module
    in_encoder: bool
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    result: Any

    @property
    def with_gradient(self) -> bool:
        """Whether a backward pass goes through it."""
        return any(value.requires_grad for value in _tensors(self.result))


def encoders(nets: nn.ModuleDict) -> list[nn.Module]:
    """The online encoder and all networks of its kind."""
    return [net for net in nets.values() if type(net) is type(nets["encoder"])]


@contextmanager
def recorded(nets: nn.ModuleDict) -> Iterator[list[Call]]:
    """Collects the outermost calls of the networks and of modules within them, in order."""
    in_encoders = {module for net in encoders(nets) for module in net.modules()}
    calls: list[Call] = []
    depth = 0

    def before(*_: Any) -> None:
        nonlocal depth
        depth += 1

    def after(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> None:
        nonlocal depth
        depth -= 1
        if depth == 0:
            calls.append(Call(module, module in in_encoders, *tree_map_only(Tensor, _leaf, (args, kwargs, result))))

    handles = []
    for module in {module for net in nets.values() for module in net.modules()}:
        handles.append(module.register_forward_pre_hook(before))
        handles.append(module.register_forward_hook(after, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def given_back(calls: Sequence[Call]) -> Iterator[None]:
    """Within, the same calls in the same order get their recorded results, and nothing of them is computed."""
    results = iter([tree_map_only(Tensor, _leaf, call.result) for call in calls])
    modules = {call.module for call in calls}
    for module in modules:
        module.forward = lambda *_, **__: next(results)  # type: ignore[method-assign]
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def bare(calls: Sequence[Call], autocast: Callable[[], torch.autocast]) -> Callable[[], None]:
    """A function that makes the calls again, those with gradients forward and backward, the others forward."""
    again = [(call.module, call.args, call.kwargs, call.with_gradient) for call in calls]  # without the results
    inputs = [
        value
        for module, args, kwargs, with_gradient in again
        if with_gradient
        for value in (*module.parameters(), *_tensors((args, kwargs)))
    ]
    wanted = [value for value in dict.fromkeys(inputs) if value.requires_grad]

    def passes() -> None:
        outputs: list[Tensor] = []
        with autocast():
            for module, args, kwargs, with_gradient in again:
                with torch.set_grad_enabled(with_gradient):
                    result = module(*args, **kwargs)
                outputs += [value.float().mean() for value in _tensors(result) if value.requires_grad]
        if outputs:
            torch.autograd.grad(torch.stack(outputs).sum(), wanted, allow_unused=True)

    return passes


def views(calls: Sequence[Call], items: int, *, with_gradient: bool) -> dict[int, float]:
    """Images that pass encoders per item of the batch, by their side: calls whose first tensor is (B, 3, H, H)."""
    counts: dict[int, float] = {}
    for call in calls:
        images, *_ = _tensors((call.args, call.kwargs))
        if call.in_encoder and call.with_gradient == with_gradient and images.ndim == 4 and images.shape[1] == 3:
            side = images.shape[-1]
            counts[side] = counts.get(side, 0) + len(images) / items
    return counts


def _leaf(value: Tensor) -> Tensor:
    return value.detach().requires_grad_(value.requires_grad)


def _tensors(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]
