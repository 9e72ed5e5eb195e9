"""What a plugin must offer and return, kind by kind: `CONTRACTS`.

Each check looks at one result and raises `Breach`; types are those that the interfaces declare.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, get_args, get_origin, get_type_hints

from anaus_bench.errors import shown
from anaus_bench.interfaces import returned
from anaus_bench.interfaces.breach import kind_of, require, require_type
from anaus_bench.interfaces.dataset import Dataset
from anaus_bench.interfaces.executor import Executor
from anaus_bench.interfaces.mask_source import MaskSource
from anaus_bench.interfaces.objective import Objective
from anaus_bench.interfaces.plugin import Plugin
from anaus_bench.interfaces.protocol import Protocol
from anaus_bench.interfaces.task import Task
from anaus_bench.nn.backbones import BACKBONES

if TYPE_CHECKING:
    pass

Check = Callable[..., None]
"""Takes the plugin, what its method returned, and what the method was given."""

NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")


@dataclass(frozen=True)
class Contract:
    """What plugins of one kind keep.

    Attributes:
        interface: Their base class.
        checks: Method -> what must hold of its result.
        described: What must hold of the class beside the types of its attributes.
    """

    interface: type[Plugin[Any]]
    checks: Mapping[str, Check]
    described: Callable[[Any], None] = field(default=lambda cls: None)


def check_class(cls: Any, contract: Contract) -> None:
    """Refuses what is no class of this kind, or describes itself wrongly.

    Raises:
        Breach: With what it is or says, and what the interface declares.
    """
    title = contract.interface.__name__
    require(inspect.isclass(cls) and issubclass(cls, contract.interface), kind_of(cls), f"classes derived from {title}")
    for name, hint in get_type_hints(contract.interface).items():
        declared = get_args(hint)[0] if get_origin(hint) is ClassVar else hint
        require(hasattr(cls, name), f"{cls.__name__} without {name}", f"a class attribute {name}")
        if not isinstance(value := inspect.getattr_static(cls, name), property):
            require_type(value, declared, f"{cls.__name__}.{name}")
    require(
        NAME.fullmatch(cls.name) is not None,
        f"{cls.__name__}.name = {shown(cls.name)}",
        "a name to type: lower-case letters, digits, - and _, at most 64",
    )
    require(cls.version >= 1, f"{cls.__name__}.version = {cls.version}", "versions from 1")
    contract.described(cls)


def _described_dataset(cls: type[Dataset[Any]]) -> None:
    for name, values in (("classes", cls.classes), ("structures", cls.structures)):
        require(
            len({*values}) == len(values) <= returned.MOST_IDS,
            f"{cls.__name__}.{name} = {shown(values)}",
            f"at most {returned.MOST_IDS} names, each once",
        )


def _described_objective(cls: type[Objective[Any]]) -> None:
    known = len(cls.backbones) > 0 and {*cls.backbones} <= {*BACKBONES}
    require(known, f"{cls.__name__}.backbones = {shown(cls.backbones)}", f"some of {', '.join(BACKBONES)}")


def _described_task(cls: type[Task[Any]]) -> None:
    require(len(cls.metrics) > 0, f"{cls.__name__}.metrics = ()", "at least one metric")


def _returns(declared: Any) -> Check:
    """The check that a result is of this type."""

    def check(plugin: Plugin[Any], found: Any, *_: Any) -> None:
        require_type(found, declared, "a result")

    return check


_SHARED: Mapping[str, Check] = {"identity": _returns(dict[str, str]), "describe": _returns(dict[str, str])}

CONTRACTS: Mapping[str, Contract] = {
    "datasets": Contract(
        Dataset,
        {
            **_SHARED,
            "scan": returned.index,
            "read": returned.picture,
            "groups": returned.groups,
            "published_folds": returned.published_folds,
        },
        _described_dataset,
    ),
    "mask_sources": Contract(
        MaskSource,
        {
            **_SHARED,
            "label_maps": returned.label_maps,
            "segment": returned.label_maps,
            "read": returned.stored_maps,
            "fit": returned.state,
            "paired_corpora": _returns(str),
        },
    ),
    "objectives": Contract(
        Objective,
        {
            **_SHARED,
            "views": returned.views,
            "build": returned.nets,
            "loss": returned.loss,
            "labels": returned.labels,
            "sampler": returned.sampler,
            "corpus_facts": _returns(dict[str, str]),
            "default_backbone": _returns(str),
            "finest_stride": returned.stride,
            "lr_factor": returned.factor,
        },
        _described_objective,
    ),
    "tasks": Contract(
        Task,
        {**_SHARED, "select": returned.selected, "score": returned.scores, "draw": returned.drawn},
        _described_task,
    ),
    "protocols": Contract(
        Protocol, {**_SHARED, "build": returned.network, "notes": _returns(list[str]), "parameters": _returns(int)}
    ),
    "executors": Contract(Executor, _SHARED),
}
