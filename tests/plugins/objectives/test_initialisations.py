from __future__ import annotations

from typing import Any

import pytest

from anaus_bench.interfaces import Objective
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import Settings
from anaus_plugins.objectives.imagenet import ImageNet
from anaus_plugins.objectives.random import Random


@pytest.mark.parametrize("plugin", [ImageNet, Random])
def test_an_initialisation_names_its_start_and_is_only_its_encoder(plugin: type[Objective[Any]]) -> None:
    objective = plugin(Settings())
    encoder = Encoder("resnet18", objective.finest_stride())

    nets = objective.build(encoder)

    assert not objective.trains
    assert objective.initialisation == objective.name
    assert objective.views(224) == ()
    assert list(nets) == ["encoder"]
    assert nets["encoder"] is encoder
    assert objective.describe()
