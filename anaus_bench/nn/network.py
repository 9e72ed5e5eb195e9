"""A fine-tuned network in a file: its weights as safetensors, with a card of what it is in the metadata."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import pydantic
import safetensors
import safetensors.torch
from torch import nn

from anaus_bench.errors import LONGEST, WeightsError
from anaus_bench.machine.files import write_whole
from anaus_bench.nn.encoder import EncoderCard


@dataclass(frozen=True)
class NetworkCard:
    """What is to be known of a fine-tuned network.

    Attributes:
        encoder: Of the encoder that it was made of.
        protocol: Name of the protocol that made and trained it.
        task: Name of the task, and `fold` the number of the fold that it has not seen.
        classes: Names of the classes it tells apart, where there are any.
        phantom: Whether any image on its way was generated.
    """

    encoder: EncoderCard
    protocol: str
    task: str
    fold: int
    classes: tuple[str, ...]
    phantom: bool


def save_network(path: Path, network: nn.Module, card: NetworkCard) -> None:
    """Writes weights and card."""
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    write_whole(path, safetensors.torch.save(state, metadata={"card": json.dumps(asdict(card))}))


def read_card(path: Path) -> NetworkCard:
    """The card of a network.

    Raises:
        WeightsError: Damaged, or not written by `save_network`.
    """
    try:
        with safetensors.safe_open(path, "pt") as stream:
            text = (stream.metadata() or {}).get("card", "")
        return pydantic.TypeAdapter(NetworkCard).validate_json(text, strict=True)
    except (OSError, pydantic.ValidationError, safetensors.SafetensorError) as error:
        found = str(error)[:LONGEST].replace("\n", " ")
        raise WeightsError(f"{path} is no network of anaus-bench ({found}); fine-tune it again") from error


def load_state(path: Path, network: nn.Module) -> None:
    """Gives a network of the same build the weights of a file.

    Raises:
        WeightsError: Damaged, or of another build.
    """
    try:
        network.load_state_dict(safetensors.torch.load_file(path))
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise WeightsError(
            f"{path} does not fit its network ({str(error).splitlines()[0]}); fine-tune again"
        ) from error
