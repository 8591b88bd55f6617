"""Optimizers: each learns, goes on bit for bit, and takes the learning rate that it means."""

import contextlib
from pathlib import Path

import pytest
import torch
from bitsandbytes.optim import AdamW8bit
from torch import nn

from spinlite.config.load import validate_settings
from spinlite.config.settings import Learn, Settings
from spinlite.errors import SpinliteError
from spinlite.memory import device
from spinlite.runs.run import Run
from spinlite.runs.trees import flatten, optimizer_tree, restore_optimizer
from spinlite.selfplay import train
from spinlite.training import learn as learn_module
from tests.toy import Quiet, changed, made, train_with_cuts

KINDS = ["adamw8bit", "adamw", "schedulefree", "prodigy"]
CPU = device.Device(torch.device("cpu"), "a test")


@pytest.mark.parametrize("kind", KINDS)
def test_an_optimizer_goes_down_a_valley(kind: str):
    torch.manual_seed(0)
    weight, goal = nn.Parameter(torch.zeros(100, 50)), torch.randn(100, 50) * 0.05
    optimizer = CPU.optimizer(kind, [weight], Learn(optimizer=kind).rate * (1 if kind == "prodigy" else 10))  # pyright: ignore
    with device.training_weights(optimizer):
        for _ in range(300):
            weight.grad = weight.detach() - goal
            optimizer.step()
    assert (weight - goal).norm() < 0.1 * goal.norm()


LARGE, SMALL = [(70, 80), (5, 1000), (64, 64), (3, 5, 3, 100)], [(80,), (3, 7), (4095,)]


@pytest.mark.parametrize("shapes", [LARGE + SMALL, LARGE, SMALL], ids=["both", "in 8 bits", "small"])
def test_8_bit_adamw_is_bitsandbytes_own_bit_for_bit(shapes: list[tuple[int, ...]]):
    """Also when it goes on from a saved state, when a weight has no gradient for once, and when weights are moved."""
    torch.manual_seed(0)
    start = [torch.randn(shape) for shape in shapes]
    slopes = [[torch.randn(shape) * 10.0 ** (-turn % 4) for shape in shapes] for turn in range(12)]
    found = []
    for make in (lambda given: CPU.optimizer("adamw8bit", given, 0.01), lambda given: AdamW8bit(given, 0.01, weight_decay=0.0)):
        weights = [nn.Parameter(value.clone()) for value in start]
        optimizer = make(weights)
        for turn, slope in enumerate(slopes):
            for i, weight in enumerate(weights):
                weight.grad = None if turn == 8 and i == 1 else slope[i].clone()
            if turn == 3:
                tree = optimizer_tree(optimizer)
                optimizer = make(weights)
                restore_optimizer(optimizer, tree)
            if turn == 6:
                weights[0].data = weights[0].detach().clone()
            optimizer.step()
        tensors, numbers = flatten(optimizer_tree(optimizer))
        found.append(({f"weight {i}": weight.detach() for i, weight in enumerate(weights)} | tensors, numbers))
    (ours, our_numbers), (theirs, their_numbers) = found
    assert our_numbers == their_numbers and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_schedule_frees_snapshot_is_its_average_and_not_where_it_stands():
    weight = nn.Parameter(torch.zeros(3))
    optimizer = CPU.optimizer("schedulefree", [weight], 0.1)
    with device.training_weights(optimizer):
        for slope in (1.0, -1.0, 1.0):
            weight.grad = torch.full((3,), slope)
            optimizer.step()
        stood = weight.detach().clone()
    z = optimizer.state[weight]["z"]
    assert not torch.equal(weight, stood)
    torch.testing.assert_close(stood, 0.9 * weight.detach() + 0.1 * z)  # Defazio et al. 2024, eq. 3


@pytest.mark.parametrize("kind", ["schedulefree", "prodigy"])
def test_a_run_with_another_optimizer_goes_on_bit_for_bit(
    kind: str, toy: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    tree = toy.model_dump(exclude_none=True)
    tree["learn"] |= {"optimizer": kind}
    del tree["learn"]["lr"]
    settings = validate_settings(tree)
    train(settings, tmp_path / "a" / "r", Quiet())
    train_with_cuts(settings, tmp_path / "b" / "r", cuts=4, calls=60, seed=kind)
    assert made(tmp_path / "a" / "r") == made(tmp_path / "b" / "r")


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_optimizer_steps_as_if_nothing_had_happened(kind: str, tmp_path: Path, toy: Settings):
    torch.manual_seed(0)
    weights = [nn.Parameter(torch.randn(100, 50)), nn.Parameter(torch.randn(3))]
    twins = [nn.Parameter(w.detach().clone()) for w in weights]
    gradients = [[torch.randn_like(w) for w in weights] for _ in range(4)]

    def advance(optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], steps: slice) -> None:
        for grads in gradients[steps]:
            for p, g in zip(parameters, grads, strict=True):
                p.grad = g.clone()
            optimizer.step()

    first, second = (CPU.optimizer(kind, ws, 1e-2) for ws in (weights, twins))
    with device.training_weights(first):
        advance(first, weights, slice(0, 4))
    with contextlib.suppress(KeyboardInterrupt), device.training_weights(second):
        advance(second, twins, slice(0, 2))
        run = Run(tmp_path, toy)
        run.open()
        run.log("begin", settings=toy.model_dump(), levers={})
        run.save({"optimizer": optimizer_tree(second)}, round=1, update=2, stopped=None)
        raise KeyboardInterrupt
    resumed = CPU.optimizer(kind, twins, 1e-2)
    restore_optimizer(resumed, Run(tmp_path, toy).tensors()["optimizer"])
    with device.training_weights(resumed):
        advance(resumed, twins, slice(2, 4))
    assert all(torch.equal(a, b) for a, b in zip(weights, twins, strict=True))


def test_the_rate_is_what_the_optimizer_means_by_it(toy: Settings):
    assert Learn().rate == 3e-4 and Learn(lr=1e-5).rate == 1e-5
    assert Learn(optimizer="prodigy").rate == 1 and changed(toy, learn__optimizer="prodigy", learn__lr=1).learn.rate == 1
    with pytest.raises(SpinliteError, match=r"learn\.lr = 0\.01, but prodigy finds the rate itself.*\nfix: type --lr 1"):
        changed(toy, learn__optimizer="prodigy")
    with pytest.raises(SpinliteError, match=r"learn\.lr = 1, but adamw8bit needs far less"):
        changed(toy, learn__lr=1)
