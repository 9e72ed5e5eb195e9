"""The whole of LP-SAM: SAM's image encoder with adapters, prompt encoder and mask decoder, and the prompt engine."""

from __future__ import annotations

from contextlib import nullcontext

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from anaus_plugins.mask_sources.lpsam.encoder import PaperEncoder, SamusEncoder
from anaus_plugins.mask_sources.lpsam.prompt_engine import LatentPromptEngine
from anaus_plugins.mask_sources.lpsam.settings import LPSAMSettings


class BatchedMaskDecoder(MaskDecoder):  # type: ignore[misc]
    """SAM's mask decoder for one prompt per image embedding; makes the first of SAM's masks only."""

    def forward(self, embedding: Tensor, positions: Tensor, prompts: Tensor, dense: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (N, 4H, 4W) and predicted IoU (N,).

        Args:
            embedding: (N, dim, H, W).
            positions: (1, dim, H, W).
            prompts: (N, T, dim) sparse prompts.
            dense: (N or 1, dim, H, W).
        """
        count, dim, height, width = embedding.shape
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(count, -1, -1), prompts.to(own.dtype)], dim=1)
        tokens, image = self.transformer(embedding + dense, positions.expand_as(embedding), tokens)
        image = self.output_upscaling(image.transpose(1, 2).reshape(count, dim, height, width))
        hyper = self.output_hypernetworks_mlps[0](tokens[:, 1])  # (N, dim/8)
        logits = torch.einsum("nc,nchw->nhw", hyper, image)
        return logits, self.iou_prediction_head(tokens[:, 0])[:, 0]


class LPSAMNetwork(nn.Module):
    """The modules under SAM's names, and `prompt_engine`.

    Args:
        settings: Dimensions and variants.
        structures: Number of structure classes.
    """

    def __init__(self, settings: LPSAMSettings, structures: int) -> None:
        super().__init__()
        size = settings.size
        dim = size.prompt_dim
        self.image_encoder: PaperEncoder | SamusEncoder = (
            PaperEncoder(size, settings.adapter_dim) if settings.adapter == "paper" else SamusEncoder(size)
        )
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(size.grid, size.grid),
            input_image_size=(size.side, size.side),
            mask_in_chans=16,
        )
        self.mask_decoder = BatchedMaskDecoder(
            transformer_dim=dim,
            transformer=TwoWayTransformer(depth=2, embedding_dim=dim, num_heads=8, mlp_dim=8 * dim),
            iou_head_hidden_dim=dim,
        )
        self.per_class = settings.tokens == "per_class"
        self.prompt_engine = LatentPromptEngine(
            dim,
            queries=structures if self.per_class else settings.joint_tokens,
            rounds=settings.rounds,
            official=settings.lpe == "official",
            refine=settings.refine_fc,
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 1, S, S) in [0, 1] -> logits (B, K, S/2, S/2) and predicted IoU (B, K), K classes (joint: 1)."""
        embedding = self.image_encoder(images)
        prompts = self.latent_prompts(images, embedding)  # (B, K, T, dim)
        count, maps = prompts.shape[:2]
        logits, iou = self.decode(embedding.repeat_interleave(maps, dim=0), prompts.flatten(0, 1))
        return logits.view(count, maps, *logits.shape[1:]), iou.view(count, maps)

    def positions(self) -> Tensor:
        """SAM's dense positional code (1, dim, H, W), in float32: bf16 would blur it by a fraction of a pixel."""
        kind = self.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.device.type
        exact = torch.autocast(kind, enabled=False) if torch.amp.is_autocast_available(kind) else nullcontext()
        with exact:
            dense: Tensor = self.prompt_encoder.get_dense_pe()
        return dense

    def latent_prompts(self, images: Tensor, embedding: Tensor) -> Tensor:
        """Sparse prompts of each map (B, K, T, dim): one token for each of K classes, or all T tokens for one map."""
        queries: Tensor = self.prompt_engine(images, embedding, self.positions())
        return queries[:, :, None] if self.per_class else queries[:, None]

    def decode(self, embedding: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings (N, dim, H, W), sparse prompts (N, T, dim) -> logits (N, 4H, 4W), predicted IoU (N,)."""
        dense = self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        decoded: tuple[Tensor, Tensor] = self.mask_decoder(embedding, self.positions(), prompts, dense)
        return decoded
