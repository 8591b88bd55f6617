"""Masked errors while learning: what a mask hides changes neither loss nor gradient, for every method and in every layout."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn
from torch.testing import assert_close

from spinlite.config import rounds as rounds_module
from spinlite.config.load import load_settings
from spinlite.config.settings import Settings
from spinlite.lora.adapters import Slots
from spinlite.maths.paths import Path as NoisePath
from spinlite.selfplay import train
from spinlite.training import judge as judge_module
from spinlite.training import learn as learn_module
from spinlite.training.batches import Batch, PathPoints
from spinlite.training.step import measure, required_errors, step
from tests.toy import Quiet, changed, made
from tests.training.test_step import METHODS, exact, gradient  # noqa: F401

HIDDEN = slice(0, 3)  # columns


class Local(nn.Module):
    """Each place of its prediction depends on that place alone, so that only the error can look elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(2 + 1 + 1, 12, 1), nn.Conv2d(12, 2, 1)

    def forward(self, x_t: Tensor, t: Tensor, words: Tensor) -> Tensor:
        more = [each.view(-1, 1, 1, 1).expand(-1, 1, *x_t.shape[2:]) for each in (t, words)]
        return self.last(torch.tanh(self.first(torch.cat([x_t, *more], 1))))


class LocalFamily:
    path = NoisePath("flow")

    def __init__(self) -> None:
        self.net = Local().double()

    def denoise(self, x_t: Tensor, t: Tensor, cond: Any) -> Tensor:
        return self.net(x_t, t, cond["words"])


@pytest.fixture
def local() -> tuple[Any, Slots]:
    torch.manual_seed(5)
    family = LocalFamily()
    slots = Slots(family.net, ["first", "last"], rank=2, alpha=4.0, seed=1)
    family.net.double()
    for who in ("policy", "opponent"):
        slots.load(who, {name: 0.4 * torch.randn_like(value) for name, value in slots.state(who).items()})
    return family, slots


def masked_batch(n: int = 7) -> Batch:
    """Masks of n samples, each another one, that all hide the first columns."""
    torch.manual_seed(3)
    real, fake, eps, eps_fake, x_t, own = (torch.randn(n, 2, 4, 6, dtype=torch.float64) for _ in range(6))
    mask = torch.rand(n, 1, 4, 6)
    mask[..., HIDDEN] = 0
    t, words = torch.rand(2, n, dtype=torch.float64)
    return Batch(real, fake, eps, t, {"words": words}, eps_fake=eps_fake, path_points=PathPoints(x_t, t, own), mask=mask)


def elsewhere(batch: Batch) -> Batch:
    """The same batch with other numbers where the masks hide them."""

    def other(value: Any) -> Any:
        if value is not None:
            value = value.clone()
            value[..., HIDDEN] = torch.randn_like(value[..., HIDDEN])
        return value

    points = batch.path_points and PathPoints(other(batch.path_points.x_t), batch.path_points.t, other(batch.path_points.own))
    return replace(
        batch, real=other(batch.real), fake=other(batch.fake), eps=other(batch.eps), eps_fake=other(batch.eps_fake),
        path_points=points,
    )  # fmt: skip


@pytest.mark.parametrize("ahead", [False, True], ids=["live", "ahead"])
@pytest.mark.parametrize("one_graph", [False, True], ids=["at once", "one graph"])
@pytest.mark.parametrize("way", ["noised again", "noise of its own", "on its path"])
@pytest.mark.parametrize("method", METHODS, ids=str)
def test_what_a_mask_hides_changes_nothing(method: Any, way: str, one_graph: bool, ahead: bool, local: Any, exact: None):  # noqa: F811
    """Compared with autograd through errors by hand; in micro-batches too; opponent errors live and measured ahead."""
    family, slots = local
    batch = masked_batch()
    batch = replace(batch, **({} if way == "on its path" else {"path_points": None}),
                    **({} if way == "noise of its own" else {"eps_fake": None}))  # fmt: skip
    batch = replace(batch, weight=torch.linspace(0.5, 2, 7, dtype=torch.float64))
    plain_loss, plain_errors = step(family, slots, method, batch, False)
    plain = gradient(slots)
    assert max(g.abs().max() for g in plain) > 0
    other = elsewhere(batch)
    if ahead:
        names = [name for name in required_errors(method) if name.startswith("opponent")]
        names = [name for name in names if way != "on its path" or not name.endswith("fake")]
        other = replace(other, known={name: measure(family, slots, name, batch).detach() for name in names})
    for micro_batch in (None, 1, 3):
        loss, errors = step(family, slots, method, other, one_graph, micro_batch)
        assert_close(loss, plain_loss)
        assert_close(errors, plain_errors)
        assert_close(gradient(slots), plain)
    loss, _ = step(family, slots, method, elsewhere(replace(batch, mask=None)), one_graph)
    assert abs(loss - plain_loss) > 1e-4
    assert any(not torch.allclose(a, b) for a, b in zip(gradient(slots), plain, strict=True))


@pytest.mark.parametrize("name", ["policy_real", "opponent_real", "base_real", "policy_fake", "opponent_fake"])
def test_everybody_is_measured_with_the_same_mask(name: str, local: Any, exact: None):  # noqa: F811
    """By hand: a mask of zeros and ones leaves the mean over what is shown; an even one leaves the mean over everything."""
    family, slots = local
    batch = replace(masked_batch(), path_points=None, eps_fake=None)
    assert batch.mask is not None and batch.fake is not None
    x0 = batch.real if name.endswith("real") else batch.fake
    x_t, target = family.path.noise(x0, batch.eps, batch.t), family.path.target(x0, batch.eps, batch.t)
    with slots.use(name.partition("_")[0]):  # pyright: ignore[reportArgumentType]
        squared = (family.denoise(x_t, batch.t, batch.cond) - target).square()
    shown = replace(batch, mask=(batch.mask > 0).float())
    assert_close(measure(family, slots, name, shown), squared[..., 3:].flatten(1).mean(1))
    even = replace(batch, mask=torch.full_like(batch.mask, 0.25))
    assert_close(measure(family, slots, name, even), squared.flatten(1).mean(1))
    grey = (batch.mask * squared).flatten(1).sum(1) / (2 * batch.mask.double().flatten(1).sum(1))
    assert_close(measure(family, slots, name, batch), grey)


@pytest.fixture
def masked(tmp_path: Path) -> Settings:
    """The demo's model on eight pictures of two shapes, a disc each, with tags; all but one have their disc as a mask."""
    folder = tmp_path / "discs"
    folder.mkdir()
    for i in range(8):
        size = 96, 64 + 32 * (i % 2)
        picture, mask = Image.new("RGB", size, (20 * i, 90, 200 - 20 * i)), Image.new("L", size)
        for image, ink in ((picture, (250, 30 * i, 0)), (mask, 255)):
            ImageDraw.Draw(image).ellipse((10 + 5 * i, 10, 50 + 5 * i, 50), fill=ink)  # pyright: ignore[reportArgumentType]
        picture.save(folder / f"p{i}.png")
        if i:
            mask.save(folder / f"p{i}-masklabel.png")
        (folder / f"p{i}.txt").write_text(f"disc, kind {i}, flat, bright, on a ground", encoding="utf-8")
    words = [
        "data.shuffle=true", "data.keep_tokens=1", "data.tag_dropout=0.1", "data.flip=true", "data.heldout=0.3", "play.steps=2",
        "learn.updates=3", "learn.batch=3", "learn.optimizer=adamw", "run.rounds=1", "judge.draws=2", "judge.stop=false",
        "judge.captions=1", "play.guidance=1.0", "model.targets=linear", "model.rank=2",
        "memory.precision=fp32", "memory.play_batch=4", "method.beta=50.0",
    ]  # fmt: skip
    return load_settings("demo", words, data__folder=str(folder))


def test_a_run_with_masks_and_wordings_is_the_same_when_cut_off_and_with_opponents_measured_ahead(
    masked: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(learn_module, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(rounds_module, "MEASURED", 8)  # draws in all: these pictures are few
    seen: list[Any] = []
    whole = judge_module.heldout_errors
    monkeypatch.setattr(judge_module, "heldout_errors", lambda *args: (seen.append(args), whole(*args))[1])
    live = train(changed(masked, memory__cache_opponent=False), tmp_path / "a" / "r", Quiet())
    assert all(r.mask for r in seen[0][3])  # held-out errors are masked too
    ahead = changed(masked, memory__cache_opponent=True, memory__micro_batch=2)
    for title, stop in (("encode", 9), ("learn", 2)):
        with pytest.raises(KeyboardInterrupt):
            train(ahead, tmp_path / "b" / "r", Quiet(lambda t, done, title=title, stop=stop: title in t and done >= stop))
    cut = train(ahead, tmp_path / "b" / "r", Quiet())
    train(ahead, tmp_path / "c" / "r", Quiet())
    assert made(tmp_path / "b" / "r") == made(tmp_path / "c" / "r")
    losses = [[event["loss"] for event in run.run.events("update")] for run in (live, cut)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
