"""Mask R-CNN (He et al. 2017, arXiv:1703.06870) on a pre-trained backbone with a pyramid, from torchvision's parts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from anaus_bench.errors import SettingsError
from anaus_bench.lazy import nn, torch
from anaus_bench.nn.backbones import VITS
from anaus_bench.training.batching import encoder_card

if TYPE_CHECKING:
    from anaus_bench.nn.encoder import Encoder
    from anaus_plugins.protocols.maskrcnn.settings import MaskRCNNSettings

NUM_CLASSES = 2
"""Background and foreground."""

LONGEST_TO_SHORTEST = 1333 / 800
"""Ratio of the largest longest to the shortest side of resized images, as in torchvision and detectron2."""


def anchor_sizes(settings: MaskRCNNSettings) -> tuple[float, ...]:
    """One anchor side per level P2..P6 in pixels of the resized image: smallest * 2^k."""
    smallest = settings.smallest_anchor or settings.size / 16
    return tuple(smallest * 2**level for level in range(5))


def build_maskrcnn(encoder: Encoder, settings: MaskRCNNSettings) -> nn.Module:
    """A `MaskRCNN` of torchvision for one foreground class, with the encoder's backbone and, if transferred, pyramid.

    It takes a list of images (3, H, W) float32 in [0, 1] of any size, normalises them as in pre-training, and answers
    in pixels of the image it was given.

    Raises:
        SettingsError: The pyramid is to be transferred and the encoder has none.
    """
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead
    from torchvision.models.detection.mask_rcnn import MaskRCNNHeads

    card = encoder_card(encoder)
    backbone = build_backbone(encoder, settings)
    heads: dict[str, Any] = {}
    if settings.norm == "gn":
        width = backbone.out_channels
        heads["box_head"] = FastRCNNConvFCHead((width, 7, 7), [256] * 4, [1024], norm_layer=_group_norm)
        heads["mask_head"] = MaskRCNNHeads(width, (256,) * 4, dilation=1, norm_layer=_group_norm)
    model: nn.Module = MaskRCNN(
        backbone,
        NUM_CLASSES,
        min_size=settings.size,
        max_size=round(settings.size * LONGEST_TO_SHORTEST),
        image_mean=list(card.mean),
        image_std=list(card.std),
        rpn_anchor_generator=AnchorGenerator(tuple((size,) for size in anchor_sizes(settings)), ((0.5, 1.0, 2.0),) * 5),
        rpn_pre_nms_top_n_train=2 * settings.proposals,
        rpn_pre_nms_top_n_test=settings.proposals,
        rpn_post_nms_top_n_train=settings.proposals,
        rpn_post_nms_top_n_test=settings.proposals,
        box_batch_size_per_image=settings.rois,
        box_detections_per_img=settings.detections,
        **heads,
    )
    _initialise_predictors(model)
    return model


def build_backbone(encoder: Encoder, settings: MaskRCNNSettings) -> Any:
    """Backbone with the encoder's weights and pyramid: levels P2..P5 and the subsampled P6, 256 channels each.

    Raises:
        SettingsError: The pyramid is to be transferred and the encoder has none down to stride 4.
    """
    if settings.transfer == "backbone+fpn" and (encoder.pyramid is None or encoder.finest_stride != 4):
        raise SettingsError(
            "protocol.transfer='backbone+fpn' needs an encoder with a pyramid down to stride 4, found one whose finest "
            f"trained map has stride {encoder.finest_stride}; use protocol.transfer='backbone'"
        )
    return _vit_backbone(encoder, settings) if encoder.arch in VITS else _resnet_backbone(encoder, settings)


def _vit_backbone(encoder: Any, settings: MaskRCNNSettings) -> Any:
    """A copy of the transformer with ViTDet's pyramid; level P5 of the encoder's has no counterpart and stays new."""
    from anaus_bench.nn.encoder import PYRAMID_CHANNELS
    from anaus_bench.nn.vit import SimplePyramidBackbone

    backbone = SimplePyramidBackbone(copy.deepcopy(encoder.backbone), PYRAMID_CHANNELS)
    freeze_below(backbone.body, encoder.backbone.stages, settings.trainable_layers)
    if settings.transfer == "backbone+fpn":
        for stride, level in encoder.pyramid.levels.items():
            backbone.fpn.levels[stride].load_state_dict(level.state_dict())
    return backbone


def _resnet_backbone(encoder: Any, settings: MaskRCNNSettings) -> Any:
    """A `BackboneWithFPN` of torchvision."""
    import torchvision
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.ops import FrozenBatchNorm2d
    from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

    batch_norm = nn.BatchNorm2d if settings.norm == "bn" else FrozenBatchNorm2d
    body = torchvision.models.get_model(encoder.arch, weights=None, norm_layer=batch_norm)
    del body.fc  # the encoder has none, so that the names below must match strictly
    body.load_state_dict(encoder.backbone.state_dict())
    freeze_below(body, encoder.backbone.stages, settings.trainable_layers)
    backbone = BackboneWithFPN(
        body,
        return_layers={f"layer{stage}": str(stage - 1) for stage in (1, 2, 3, 4)},
        in_channels_list=[encoder.feature_dim // 8 * 2**stage for stage in range(4)],
        out_channels=256,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=_group_norm if settings.norm == "gn" else None,
    )
    if settings.transfer == "backbone+fpn":
        transfer_pyramid(encoder.pyramid, backbone.fpn, with_bias=settings.norm != "gn")
    return backbone


@contextmanager
def trunks_in_bf16(model: Any, device_type: str) -> Iterator[None]:
    """Meanwhile backbone, pyramid and the convolutional and linear trunks of the heads are autocast, and give float32.

    The whole model must not be autocast: torchvision decodes boxes in the dtype of the regressed deltas, and bf16
    rounds coordinates from 256 px on to 2 px.
    """
    trunks = (model.backbone, model.rpn.head, model.roi_heads.box_head, model.roi_heads.mask_head)
    for trunk in trunks:
        trunk.forward = _in_bf16(trunk.forward, device_type)
    try:
        yield
    finally:
        for trunk in trunks:
            del trunk.forward


def freeze_below(body: nn.Module, stages: Sequence[tuple[str, ...]], trainable_layers: int) -> None:
    """Leaves gradients to the last `trainable_layers` of the stem and the stages."""
    trained = tuple(name for stage in stages[len(stages) - trainable_layers :] for name in stage)
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))


def transfer_pyramid(pyramid: Any, fpn: Any, with_bias: bool) -> None:
    """Copies the encoder's laterals of C2..C5 and smoothing of P2..P4; P5 has no counterpart and stays new."""
    pairs = [
        *zip(pyramid.lateral, fpn.inner_blocks, strict=True),
        *zip(pyramid.smooth, list(fpn.layer_blocks)[:-1], strict=True),
    ]
    for ours, theirs in pairs:
        state = ours.state_dict() if with_bias else {"weight": ours.weight}
        theirs[0].load_state_dict(state)


def _in_bf16(forward: Callable[..., Any], device_type: str) -> Callable[..., Any]:
    def wrapped(*args: Any) -> Any:
        with torch.autocast(device_type, dtype=torch.bfloat16):
            return _as_float32(forward(*args))

    return wrapped


def _as_float32(values: Any) -> Any:
    """The same nest of dictionaries, lists and tuples with float32 tensors."""
    if isinstance(values, Mapping):
        return {name: _as_float32(value) for name, value in values.items()}
    if isinstance(values, (list, tuple)):
        return type(values)(_as_float32(value) for value in values)
    return values.float()


def _initialise_predictors(model: Any) -> None:
    """Draws the predictor layers from N(0, 0.01) and N(0, 0.001) as detectron2 does, for a calm start."""
    box, mask = model.roi_heads.box_predictor, model.roi_heads.mask_predictor
    for layer, std in ((box.cls_score, 0.01), (box.bbox_pred, 0.001), (mask.mask_fcn_logits, 0.001)):
        nn.init.normal_(layer.weight, std=std)
        nn.init.zeros_(layer.bias)


def _group_norm(channels: int) -> nn.Module:
    return nn.GroupNorm(32, channels)
