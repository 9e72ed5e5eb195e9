"""What a plugin provides and what it is given, one module per kind.

A plugin class describes: its name, version, settings, needs and source. It is cheap to import, so that `show` and
`plan` answer at once: torch comes from `anaus_bench.lazy`. Networks are built on demand (`Objective.build`) and hold
all state.
"""

from anaus_bench.interfaces.dataset import Dataset, Index, Picture, Sample
from anaus_bench.interfaces.executor import Executor, Runner
from anaus_bench.interfaces.mask_source import MaskSource
from anaus_bench.interfaces.objective import Initialisation, Need, Objective
from anaus_bench.interfaces.plugin import Plugin, S
from anaus_bench.interfaces.protocol import Protocol, TaskT
from anaus_bench.interfaces.stage import (
    Progress,
    Stage,
    StageContext,
    StageInputs,
    Tracker,
    key_parts,
)
from anaus_bench.interfaces.task import Case, Fold, Metric, Scores, Task

__all__ = [
    "Case",
    "Dataset",
    "Executor",
    "Fold",
    "Index",
    "Initialisation",
    "MaskSource",
    "Metric",
    "Need",
    "Objective",
    "Picture",
    "Plugin",
    "Progress",
    "Protocol",
    "Runner",
    "S",
    "Sample",
    "Scores",
    "Stage",
    "StageContext",
    "StageInputs",
    "Task",
    "TaskT",
    "Tracker",
    "key_parts",
]
