"""The latent prompt engine (LPE): query tokens that learn where to look, in place of clicks (AnaUS eqs. 1-3)."""

from __future__ import annotations

import torch
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn

from anaus_plugins.mask_sources.lpsam.encoder import CNNBranch, ConvNormAct

HEADS = 8


class Update(nn.Module):
    """MLP(LN(MHCA(q, kv, kv) + q)); the MLP is one linear layer, as in the authors' code (7.0 M parameters in all)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attention = Attention(dim, HEADS)
        self.norm = nn.LayerNorm(dim)
        self.mlp = nn.Linear(dim, dim)

    def forward(self, queries: Tensor, context: Tensor) -> Tensor:
        """(B, N, dim) and (B, M, dim) -> (B, N, dim)."""
        updated: Tensor = self.mlp(self.norm(self.attention(queries, context, context) + queries))
        return updated


class Round(nn.Module):
    """One round: the image tokens take in F_c (eq. 1), then image and query tokens update each other (eqs. 2, 3)."""

    def __init__(self, dim: int, residual: bool, refine: bool) -> None:
        super().__init__()
        self.refine = ConvNormAct(dim, dim) if refine else nn.Identity()
        self.cross = Attention(dim, HEADS)
        self.cross_norm = nn.LayerNorm(dim) if residual else None
        self.image_update = Update(dim)
        self.query_update = Update(dim)

    def forward(self, image: Tensor, queries: Tensor, cnn: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """F_v (B, H*W, dim), T (B, k, dim), F_c (B, dim, H, W) -> F'_v, T' and the F_c that was used."""
        cnn = self.refine(cnn)
        beside = cnn.flatten(2).transpose(1, 2)  # (B, H*W, dim)
        fused = self.cross(image, beside, beside)
        if self.cross_norm is not None:
            fused = self.cross_norm(fused + image)  # Eq. 1
        return self.image_update(fused, queries), self.query_update(queries, fused), cnn


class LatentPromptEngine(nn.Module):
    """Query tokens, a CNN branch and N rounds with weights of their own.

    Args:
        dim: Width of tokens and image embedding.
        queries: Number k of query tokens.
        rounds: N.
        official: As the authors' code: eq. 1 without residual and norm, F_c convolved and carried on from round to
            round. Otherwise each round starts from the CNN branch's F_c.
        refine: Whether each round convolves its F_c; always if `official`.
    """

    def __init__(self, dim: int, queries: int, rounds: int, official: bool, refine: bool) -> None:
        super().__init__()
        self.official = official
        self.queries = nn.Embedding(queries, dim)
        self.cnn_branch = CNNBranch(dim // 4, dim)
        self.rounds = nn.ModuleList(Round(dim, not official, refine or official) for _ in range(rounds))

    def forward(self, images: Tensor, embedding: Tensor, positions: Tensor) -> Tensor:
        """Prompt tokens T'_last (B, k, dim).

        Args:
            images: (B, 1, S, S) in [0, 1].
            embedding: F_v (B, dim, S/8, S/8).
            positions: SAM's dense positional code (1, dim, S/8, S/8), added to the image tokens in every round (code).
        """
        image = embedding.flatten(2).transpose(1, 2)  # (B, H*W, dim)
        code = positions.flatten(2).transpose(1, 2)
        queries = self.queries.weight.expand(len(images), -1, -1)
        cnn = self.cnn_branch(images.expand(-1, 3, -1, -1))
        for step in self.rounds:
            image, queries, refined = step(image + code, queries, cnn)
            if self.official:
                cnn = refined
        return torch.as_tensor(queries)
