"""The model card of an exported encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from anaus_bench.export.formats import Format, encoder_card, facts_of
from anaus_bench.nn.encoder import Encoder, EncoderCard
from anaus_bench.planning.specs import CorpusSpec, MasksSpec, PretrainSpec
from anaus_bench.registry import Registry
from anaus_bench.results.lineage import datasets_below, records_below
from anaus_bench.results.tables import PHANTOM_MARK
from anaus_bench.store import Record, Store


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Attributes:
        key: Of the pre-training stage.
        weights: The weights file.
        card: The model card, in the same folder.
        library: Package that reads the weights.
        version: Of the library that read the file back; None where it is not installed.
        difference: Largest difference of an output, as `TOLERANCE` measures it; None if not compared.
    """

    key: str
    weights: Path
    card: Path
    library: str
    version: str | None
    difference: float | None

    @property
    def verdict(self) -> str:
        """What the comparison said, in words."""
        if self.version is None:
            return f"not verified here: {self.library} is not installed"
        return f"{self.library} {self.version} computes the same, largest difference {self.difference:.1e}"


def model_card(
    record: Record, encoder: Encoder, form: Format, exported: Exported, store: Store, registry: Registry
) -> str:
    """Markdown: what the encoder is, how to load it, the terms of its data, settings and references."""
    card, facts, spec = encoder_card(encoder), facts_of(encoder), PretrainSpec.model_validate(record["spec"])
    below = list(records_below(record, store))
    datasets = datasets_below(below)
    masks = [
        MasksSpec.model_validate(found["spec"]).masks.name for kind, _, found in below if kind == "masks" and found
    ]
    size = f"trained at {spec.pretrain['size']} x {spec.pretrain['size']} pixels" if spec.pretrain else ""
    rows = {
        "method": f"{card.method} (seed {spec.seed})",
        "backbone": encoder.arch + _pyramid(encoder),
        "file": f"`{form.file}`: {form.holds.format(**facts)}",
        "trained on": _trained(record, below),
        "masks": ", ".join(masks),
        "initialisation": card.initialisation,
        "input": "(B, 3, H, W) float32: gray image in [0, 1], repeated to 3 channels, then (x - mean) / std; " + size,
        "mean, std": f"{list(card.mean)}, {list(card.std)}",
        "verified": exported.verdict,
        "key": f"`{record['key']}`",
        "made with": ", ".join(f"{name} {version}" for name, version in record["versions"].items()),
    }
    settings = {"objective": spec.objective.settings, "pretrain": spec.pretrain or {}}
    names = [("objectives", card.method), *(("mask_sources", name) for name in masks)]
    references = [registry.get(kind, name).reference for kind, name in names]
    references += [registry.get("datasets", name).reference for name in datasets]
    return "\n".join(
        [
            f"# {card.method} {encoder.arch}: an encoder for ultrasound images\n",
            *([f"> **{PHANTOM_MARK.upper()}**\n"] if record["phantom"] else []),
            "| | |\n|---|---|",
            *(f"| {name} | {text.rstrip('; ')} |" for name, text in rows.items() if text),
            f"\n## Load\n\n{form.usage.format(**facts)}\n",
            "## Data and licences\n",
            *_licences(datasets, below, card, registry),
            f"\n## Settings\n\n```yaml\n{yaml.safe_dump(settings, sort_keys=False)}```\n",
            "## References\n",
            *(f"- {text}" for text in dict.fromkeys(references) if text),
            "",
        ]
    )


def _trained(record: Record, below: Sequence[tuple[str, str, Record | None]]) -> str:
    if "corpus" not in record["inputs"]:
        return "nothing: these are the weights it starts from"
    corpus = next(found for kind, _, found in below if kind == "corpus")
    names = (
        "+".join(CorpusSpec.model_validate(corpus["spec"]).datasets)
        if corpus
        else "a corpus that is no longer in the store"
    )
    result = record["result"]
    return f"{names}: {result['images']:,} images, {result['steps']:,} steps ({result['epochs']:g} epochs)"


def _pyramid(encoder: Encoder) -> str:
    return f", pyramid from stride {encoder.finest_stride}" if encoder.pyramid is not None else ""


def _licences(
    datasets: Mapping[str, bool],
    below: Sequence[tuple[str, str, Record | None]],
    card: EncoderCard,
    registry: Registry,
) -> Iterator[str]:
    """One line for each source whose terms may bind the weights."""
    yield "The terms of the data may bind the use of weights made from it; ask its publishers where in doubt.\n"
    for name, generated in datasets.items():
        dataset = registry.get("datasets", name)
        terms = "generated phantoms in its layout" if generated else f"{dataset.licence or 'not stated'}. {dataset.url}"
        yield f"- {name} ({dataset.title}): {terms}".rstrip()
    for kind, key, found in below:
        if found is None:
            yield f"- {kind} `{key}` is no longer in the store: its data sets are not known here"
    if card.initialisation != "random":
        yield "- ImageNet weights of torchvision, the initialisation: terms of torchvision and of ImageNet"
