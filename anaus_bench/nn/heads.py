"""Projector and predictor heads."""

from __future__ import annotations

from torch import Tensor, nn


class MLP(nn.Sequential):
    """Linear, batch norm, ReLU, linear; the norm takes its statistics over all leading dimensions together."""

    def forward(self, rows: Tensor) -> Tensor:
        """Maps (..., in_dim) to (..., out_dim); `(B, K, C)` is normalised over its B * K rows."""
        flat: Tensor = rows.flatten(0, -2)
        for layer in self:
            flat = layer(flat)
        return flat.reshape(*rows.shape[:-1], -1)


def mlp(
    in_dim: int, hidden_dim: int, out_dim: int, *, norm: bool = True, hidden_bias: bool = True, out_bias: bool = True
) -> MLP:
    """A two-layer head.

    Args:
        in_dim: Width of the rows.
        hidden_dim: Width of the hidden layer.
        out_dim: Width of the result.
        norm: Batch norm after the first layer.
        hidden_bias: Bias of the first layer.
        out_bias: Bias of the last layer; BYOL has none.
    """
    layers: list[nn.Module] = [nn.Linear(in_dim, hidden_dim, bias=hidden_bias)]
    if norm:
        layers.append(nn.BatchNorm1d(hidden_dim))
    return MLP(*layers, nn.ReLU(inplace=True), nn.Linear(hidden_dim, out_dim, bias=out_bias))
