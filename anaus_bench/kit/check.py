"""The contract of each kind of plugin, as checks that any plugin must pass: ours and other people's.

A plugin's own test calls the check of its kind with an instance at small settings; each check raises `AssertionError`
naming the rule that was broken.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anaus_bench.errors import DatasetNotFound
from anaus_bench.interfaces import Dataset, MaskSource, Objective, Plugin, Protocol, StageContext
from anaus_bench.kit.synthetic import SIDE, synthetic_batch, synthetic_corpus, synthetic_fold, synthetic_task
from anaus_bench.nn.encoder import Encoder, EncoderCard


def check_description(plugin: Plugin[Any]) -> None:
    """Name, version, documented settings, JSON round trip."""
    assert plugin.name and plugin.name == plugin.name.lower(), "a name is what a user types: lower case"
    assert plugin.version >= 1, "versions start at 1"
    assert (type(plugin).__doc__ or "").strip(), f"{plugin.name}: the class needs a docstring, which `list` shows"
    for name, field in type(plugin.settings).model_fields.items():
        nested = hasattr(field.annotation, "model_fields")
        assert nested or field.description, f"{plugin.name}: setting {name!r} needs a description"
    again = type(plugin.settings).model_validate(plugin.settings.model_dump(mode="json"))
    assert again == plugin.settings, f"{plugin.name}: settings must survive JSON"


def check_objective(objective: Objective[Any], *, size: int = 32, images: int = 4) -> None:
    """Finite scalar, gradients where due and nowhere else, a function of its batch, state that survives saving.

    Args:
        objective: With small settings.
        size: Side of the views.
        images: Images per batch.
    """
    check_description(objective)
    if not objective.trains:
        assert objective.initialisation is not None, f"{objective.name}: an initialisation must say which"
        return
    torch.manual_seed(0)
    backbone = objective.default_backbone("tiny")
    nets = objective.build(Encoder(backbone, objective.finest_stride()), num_classes=3).train()
    assert "encoder" in nets, f"{objective.name}: build must hold the online encoder under 'encoder'"
    batch = synthetic_batch(objective, size=size, images=images)
    before = copy.deepcopy(nets.state_dict())

    objective.before_forward(nets, 0.0)
    loss, logs = objective.loss(nets, batch)

    assert loss.ndim == 0 and loss.isfinite(), f"{objective.name}: the loss must be a finite scalar, found {loss}"
    assert all(value.ndim == 0 and not value.requires_grad for value in logs.values()), "logs must be detached scalars"
    loss.backward()  # type: ignore[no-untyped-call]
    learned = [name for name, value in nets["encoder"].named_parameters() if value.grad is not None]
    assert learned, f"{objective.name}: no gradient reaches the encoder"
    for name, value in nets.named_parameters():
        assert value.requires_grad or value.grad is None, (
            f"{objective.name}: the target parameter {name} has a gradient"
        )
        assert value.grad is None or bool(value.grad.isfinite().all()), (
            f"{objective.name}: gradient of {name} not finite"
        )
    objective.after_step(nets, 0.5)

    after = copy.deepcopy(nets.state_dict())
    nets.load_state_dict(before)
    again, _ = objective.loss(nets, batch)
    assert torch.equal(again, loss), f"{objective.name}: one state and one batch must give one loss"
    nets.load_state_dict(after)
    expected, _ = objective.loss(nets, batch)
    other = objective.build(Encoder(backbone, objective.finest_stride()), num_classes=3).train()
    other.load_state_dict(after)
    found, _ = objective.loss(other, batch)
    assert torch.equal(found, expected), f"{objective.name}: the state dict must hold all state"


def check_mask_source(source: MaskSource[Any], ctx: StageContext) -> None:
    """uint8 label maps of the images' size, contiguous ids from 0, one image's map independent of its batch.

    Args:
        source: With small settings; fitted here if it is learned.
        ctx: A stage's context, with empty folders.
    """
    check_description(source)
    assert not source.stored, f"{source.name}: what is stored belongs to one folder; check it by reading that folder"
    corpus = synthetic_corpus(8)
    if source.learned:
        source.load(source.fit(corpus, ctx), corpus.structures, ctx.device)
    images, truth = torch.from_numpy(corpus.images[:4])[:, None], torch.from_numpy(corpus.truth[:4])  # type: ignore[index]
    given = truth if source.needs_truth else None

    maps = source.segment(images, given)

    assert maps.dtype == torch.uint8 and maps.shape == truth.shape, f"{source.name}: expected (B, H, W) uint8"
    for label_map in maps:
        found = label_map.unique().tolist()
        assert found == list(range(len(found))), f"{source.name}: ids must be contiguous from 0, found {found}"
    assert torch.equal(source.segment(images, given), maps), f"{source.name}: the same images must give the same maps"
    single = source.segment(images[2:3], None if given is None else given[2:3])
    assert torch.equal(single[0], maps[2]), f"{source.name}: an image's map must not depend on its batch"
    source.segment(torch.zeros(1, 1, SIDE, SIDE, dtype=torch.uint8), torch.zeros(1, SIDE, SIDE, dtype=torch.uint8))


def check_protocol(protocol: Protocol[Any, Any], ctx: StageContext) -> None:
    """A network whose state dict is all that prediction needs, an encoder that stays as it was, scored predictions.

    Args:
        protocol: With small settings.
        ctx: A stage's context, with empty folders.
    """
    check_description(protocol)
    task, fold = synthetic_task(protocol.task_class), synthetic_fold(12)
    encoder = Encoder.of(EncoderCard("resnet18", 32, (0.5,) * 3, (0.25,) * 3, "random", "random", True))
    before = copy.deepcopy(encoder.state_dict())
    torch.manual_seed(0)
    network = protocol.build(encoder, fold.classes).to(ctx.device)
    counted = sum(value.numel() for value in network.state_dict().values())
    assert 0.8 < protocol.parameters("resnet18") / counted < 1.25, (
        f"{protocol.name}: parameters() says {protocol.parameters('resnet18')}, the network has {counted}"
    )

    protocol.fit(network, fold, task, ctx)

    after = encoder.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items()), f"{protocol.name}: copy the encoder"
    assert (ctx.out / "log.csv").is_file(), f"{protocol.name}: fit must write log.csv"
    found = []
    other = protocol.build(Encoder.of(encoder.card), fold.classes).to(ctx.device)  # type: ignore[arg-type]
    other.load_state_dict(network.state_dict())
    for model in (network, other):
        protocol.predict(model, fold, task, ctx)
        found.append(task.score([(fold, ctx.out)]))
    assert found[0].rows == found[1].rows, f"{protocol.name}: the state dict must hold all that prediction needs"
    assert len(found[0].rows) == len(fold.test), f"{protocol.name}: every held-out image must be predicted"


def check_dataset(dataset: Dataset[Any], folder: Path) -> None:
    """Its phantoms are read back whole: unique ids, groups, pictures with masks of their size, typed errors.

    Args:
        dataset: With its default settings.
        folder: An empty folder to write into.
    """
    check_description(dataset)
    assert dataset.title and dataset.how_to_get, f"{dataset.name}: title and how_to_get are for the user without data"
    try:
        dataset.scan(folder / "absent")
    except DatasetNotFound as error:
        assert dataset.name in str(error), f"{dataset.name}: errors name the data set"
    else:
        raise AssertionError(f"{dataset.name}: a missing folder must raise DatasetNotFound")
    if type(dataset).write_phantoms is Dataset.write_phantoms:
        return
    root = folder / "phantoms"
    root.mkdir()
    dataset.write_phantoms(root, 12, 64, 0)
    index = dataset.scan(root)
    assert index.phantom, f"{dataset.name}: generated images must be marked"
    assert index.fingerprint == dataset.scan(root).fingerprint, f"{dataset.name}: the fingerprint must be stable"
    ids = [sample.sample_id for sample in index.samples]
    assert ids and len(ids) == len(set(ids)), f"{dataset.name}: sample ids must be unique"
    assert len(dataset.groups(index)) == len(ids), f"{dataset.name}: every sample has a group"
    for sample in index.samples:
        picture = dataset.read(index, sample)
        assert picture.image.dtype == np.uint8 and picture.image.ndim == 2, f"{dataset.name}: images are (H, W) uint8"
        assert sample.label is None or 0 <= sample.label < len(dataset.classes), f"{dataset.name}: label out of range"
        if picture.mask is not None:
            assert picture.mask.shape == picture.image.shape, f"{dataset.name}: masks have their image's size"
            assert picture.mask.max() <= len(dataset.structures), f"{dataset.name}: mask ids are those of structures"
