from __future__ import annotations

import torch

from anaus_bench.nn.heads import mlp


def test_parameter_counts_are_those_of_the_papers_heads() -> None:
    assert sum(p.numel() for p in mlp(512, 1024, 256).parameters()) == 789_760
    assert sum(p.numel() for p in mlp(256, 1024, 256).parameters()) == 527_616
    assert sum(p.numel() for p in mlp(256, 4096, 256).parameters()) == 2_109_696


def test_regions_are_normalised_together_with_all_rows_of_the_batch() -> None:
    torch.manual_seed(0)
    head, rows = mlp(6, 8, 4), torch.randn(3, 5, 6)

    assert torch.allclose(head(rows), head(rows.flatten(0, 1)).view(3, 5, 4), atol=1e-6)


def test_biases_and_norm_can_be_left_out() -> None:
    assert [name for name, _ in mlp(2, 3, 4, norm=False, hidden_bias=False, out_bias=False).named_parameters()] == [
        "0.weight",
        "2.weight",
    ]
