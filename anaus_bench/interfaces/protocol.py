"""A protocol: how an encoder is used on a task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.interfaces.stage import StageContext
from anaus_bench.interfaces.task import Fold, Task

if TYPE_CHECKING:
    from torch import nn

    from anaus_bench.nn.encoder import Encoder

TaskT = TypeVar("TaskT", bound=Task[Any])


class Protocol(Plugin[S], Generic[S, TaskT]):
    """Makes a network of an encoder, trains it on a fold and predicts held-out cases.

    Training and prediction are stages of their own: the network's `state_dict` is all that passes between them.

    Attributes:
        task_class: Tasks that it can be used on, whose format its predictions have.
    """

    task_class: ClassVar[type[Task[Any]]]

    def build(self, encoder: Encoder, classes: tuple[str, ...]) -> nn.Module:
        """The network around a copy of the encoder, on the CPU; random parts come from torch's default generator.

        Raises:
            SettingsError: The encoder lacks what is to be taken from it.
        """
        raise NotImplementedError

    def fit(self, network: nn.Module, fold: Fold, task: TaskT, ctx: StageContext) -> None:
        """Trains the network of `build`, which is on `ctx.device`, on `fold.train`; writes the log `log.csv`.

        Raises:
            TrainingError: The loss is not finite.
        """
        raise NotImplementedError

    def predict(self, network: nn.Module, fold: Fold, task: TaskT, ctx: StageContext) -> None:
        """Writes predictions of `fold.test` into `ctx.out`, in the format of the task."""
        raise NotImplementedError

    def notes(self) -> list[str]:
        """What a reader of the scores must know of how the network was chosen."""
        return []

    def parameters(self, backbone: str) -> int:
        """About how many parameters the network has, by which `plan` tells what keeping it costs."""
        raise NotImplementedError
