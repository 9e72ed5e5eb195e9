from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from anaus_bench.errors import SettingsError
from anaus_bench.kit.check import check_objective
from anaus_bench.kit.synthetic import synthetic_batch, synthetic_corpus
from anaus_bench.nn.encoder import Encoder
from anaus_bench.settings.base import resolve
from anaus_plugins.objectives.mocov2 import MoCoV2, MoCoV2Settings


@pytest.fixture
def objective() -> MoCoV2:
    torch.set_num_threads(1)
    return MoCoV2(resolve(MoCoV2Settings, "objective", "tiny"))


@pytest.fixture
def nets(objective: MoCoV2) -> nn.ModuleDict:
    torch.manual_seed(0)
    return objective.build(Encoder("resnet18"))


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=1, keepdim=True)


def train(objective: MoCoV2, nets: nn.ModuleDict, steps: range) -> list[float]:
    optimiser = torch.optim.SGD([p for p in nets.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for step in steps:
        objective.before_forward(nets, step / 10)
        loss, _ = objective.loss(nets, synthetic_batch(objective, size=32, images=4, step=step))
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        objective.after_step(nets, (step + 1) / 10)
        losses.append(loss.item())
    return losses


def test_it_keeps_the_contract(objective: MoCoV2) -> None:
    check_objective(objective)


def test_loss_is_the_equation_against_the_queue_as_it_was(objective: MoCoV2, nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(objective, size=32, images=4)
    nets.eval()
    queue = nets["queue"].keys.double().clone()
    with torch.no_grad():
        queries = unit(nets["projector"](nets["encoder"].vector(batch.views[0])).double())
        keys = unit(nets["target_projector"](nets["target_encoder"].vector(batch.views[1])).double())

    loss, _ = objective.loss(nets, batch)

    expected = 0.0
    for query, key in zip(queries, keys, strict=True):
        positive = math.exp(float(query @ key) / 0.2)
        expected -= math.log(positive / (positive + sum(math.exp(float(query @ old) / 0.2) for old in queue))) / 4
    assert loss.item() == pytest.approx(expected, rel=1e-4)
    assert torch.allclose(nets["queue"].keys[:4].double(), keys, atol=1e-5)
    assert torch.equal(nets["queue"].keys[4:].double(), queue[4:])
    assert nets["queue"].pointer == 4


def test_keys_pass_in_parts_of_the_permuted_batch_and_come_back_in_order(nets: nn.ModuleDict) -> None:
    batch = synthetic_batch(MoCoV2(MoCoV2Settings(queue_size=8, bn_splits=2)), size=32, images=4)
    nets.eval()  # without batch statistics the parts make no difference
    results = []
    for splits in (1, 2):
        objective = MoCoV2(resolve(MoCoV2Settings, "objective", "tiny", {"bn_splits": splits}))
        results.append(objective._keys(nets, batch.views[1], batch.seed))
    nets.train()
    objective._keys(nets, batch.views[1], batch.seed)

    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert nets["target_encoder"].backbone.bn1.num_batches_tracked == 2


def test_the_key_network_follows_before_the_forward_and_takes_no_gradient(
    objective: MoCoV2, nets: nn.ModuleDict
) -> None:
    train(objective, nets, range(1))
    before = {name: value.clone() for name, value in nets.named_parameters()}

    objective.before_forward(nets, 0.1)

    for name, value in nets.named_parameters():
        if name.startswith("target_"):
            expected = 0.9 * before[name] + 0.1 * before[name.removeprefix("target_")]
            assert torch.allclose(value, expected, atol=1e-6)
            assert value.grad is None
        else:
            assert value.grad is not None


def test_two_halves_of_a_run_equal_the_whole(objective: MoCoV2, nets: nn.ModuleDict) -> None:
    first = copy.deepcopy(nets)
    losses = train(objective, nets, range(4))

    train(objective, first, range(2))
    second = objective.build(Encoder("resnet18"))
    second.load_state_dict(first.state_dict())

    assert train(objective, second, range(2, 4)) == losses[2:]
    assert all(torch.equal(nets.state_dict()[name], value) for name, value in second.state_dict().items())


def test_a_queue_larger_than_the_corpus_and_uneven_parts_are_refused() -> None:
    corpus = synthetic_corpus(12)

    with pytest.raises(SettingsError, match=r"objective.queue_size=4096 is more than the 12 images"):
        MoCoV2(MoCoV2Settings()).sampler(corpus, 8, 0)
    for batch in (10, 8):
        with pytest.raises(SettingsError, match=rf"pretrain.batch={batch} does not split into objective.bn_splits=8"):
            MoCoV2(MoCoV2Settings(queue_size=12)).sampler(corpus, batch, 0)
