"""Sampling: what each setting does to the walk, and that a fake is a function of its own names alone."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spinlite import summary
from spinlite.config.settings import Model, Play, Settings
from spinlite.data.records import Survey
from spinlite.errors import SpinliteError
from spinlite.families.flow_schedule import flow_schedule
from spinlite.families.schedule import OTHERS, SAMPLERS
from spinlite.families.sd import StableDiffusion
from spinlite.maths.draws import gaussian, generator
from spinlite.maths.transitions import transition
from spinlite.memory.device import Device
from spinlite.training.play import PathRecorder, _begin, coarseness, count_steps, make_scheduler, sample

CAPTIONS = ["a red square", "a blue circle", "a green tree"]


@pytest.fixture(scope="module")
def family() -> StableDiffusion:
    return StableDiffusion(Model(base="demo"), Device(torch.device("cpu"), "a test"))


def fakes(family: StableDiffusion, settings: Play, which: range = range(3), **options) -> Tensor:
    noise = torch.stack([gaussian(family.latent_shape, "x", i) for i in which])
    captions = [CAPTIONS[i] for i in which]
    chance = [generator("chance", i) for i in which]
    return sample(
        family, noise, family.encode_captions(captions), family.encode_captions([""] * len(which)), settings, chance, **options
    )


@pytest.mark.parametrize("settings", [
    Play(sampler="ddim", steps=4, eta=1.0), Play(sampler="euler-a", steps=4), Play(sampler="ddpm", steps=4),
    Play(sampler="tcd", steps=4, eta=0.3), Play(sampler="unipc", steps=4),
], ids=lambda s: f"{s.sampler}")  # fmt: skip
def test_a_fake_does_not_depend_on_the_batch_it_is_made_in(family: StableDiffusion, settings: Play):
    together = fakes(family, settings)
    assert_close(together, torch.cat([fakes(family, settings, range(i, i + 1)) for i in range(3)]), atol=2e-3, rtol=1e-3)
    if settings.sampler != "unipc":
        noise = torch.stack([gaussian(family.latent_shape, "x", i) for i in range(3)])
        other = [generator("other", i) for i in range(3)]
        assert not torch.allclose(
            together,
            sample(family, noise, family.encode_captions(CAPTIONS), family.encode_captions([""] * 3), settings, other),
            atol=1e-2,
        )


def test_guidance_acts_inside_its_interval_alone(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch):
    rows: list[tuple[int, int]] = []
    whole = family.denoise
    monkeypatch.setattr(family, "denoise", lambda x, t, c: (rows.append((int(t[0]), len(x))), whole(x, t, c))[1])
    got = fakes(family, Play(steps=5, guidance=4.0, guidance_low=0.3, guidance_high=0.7))
    assert len(rows) == 5 and {count for t, count in rows if 300 <= t <= 700} == {6}
    assert {count for t, count in rows if not 300 <= t <= 700} == {3}
    assert torch.equal(fakes(family, Play(steps=5, guidance=4.0, guidance_low=1.0)), fakes(family, Play(steps=5, guidance=1.0)))
    assert not torch.allclose(got, fakes(family, Play(steps=5, guidance=4.0)), atol=1e-2)


@pytest.mark.parametrize("name", ["ddim", "dpm++", "euler"])
@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_what_is_kept_of_a_path_is_what_the_network_said_there(family: StableDiffusion, name: str, guidance: float):
    """Each point again through the network, with its caption and without; the fake itself is what it is without keeping."""
    settings = Play(sampler=name, steps=6, guidance=guidance, points=3)
    kept = PathRecorder(settings, 6, [("a", i) for i in range(3)])
    assert torch.equal(fakes(family, settings, see=kept.record), fakes(family, settings)) or guidance == 1
    found = kept.tensors()
    assert found["x_t"].shape == found["own"].shape == (3, 3, *family.latent_shape) and found["t"].shape == (3, 3)
    for row, caption in enumerate(CAPTIONS):
        assert len(set(found["t"][row].tolist())) == 3
        for text, key in ((caption, "own"), ("", "own_empty")):
            with torch.no_grad():
                again = family.denoise(found["x_t"][row], found["t"][row], family.encode_captions([text] * 3))
            assert_close(again, found[key][row], atol=1e-4, rtol=1e-4)


def test_a_kept_path_walks_by_its_transitions(family: StableDiffusion):
    """DDIM without guidance: from each kept point its own prediction leads to the next one, as maths.transitions says."""
    settings = Play(sampler="ddim", steps=5, guidance=1.0, points=5)  # 1000 divides by 5: diffusers' DDIM steps by whole times
    kept = PathRecorder(settings, 5, [("a", i) for i in range(3)])
    fakes(family, settings, see=kept.record)
    found = kept.tensors()
    for row in range(3):
        t, places = found["t"][row].sort(descending=True)
        x_t, own = found["x_t"][row][places], found["own"][row][places]
        step = transition(family.path, t[:-1].long(), t[1:].long(), 0.0, 4)
        assert_close(step.mean(x_t[:-1], own[:-1]), x_t[1:], atol=1e-3, rtol=1e-3)


def test_settings_that_do_not_go_together_are_refused(family: StableDiffusion):
    for settings, problem in (
        (Play(sampler="dpmpp"), "'dpmpp' is no sampler for this model"),
        (Play(sampler="FlowMatchEulerDiscreteScheduler"), "is no sampler"),
        (Play(sampler="dpm++", eta=0.5), "has no eta"),
        (Play(sampler="ddim", spacing="karras"), "has no Karras schedule"),
    ):
        with pytest.raises(SpinliteError, match=problem):
            make_scheduler(family, settings, "cpu")
    with pytest.raises(SpinliteError, match="a path has 3 steps"):
        PathRecorder(Play(points=4), 3, [("a",)])


@pytest.mark.parametrize("name", [*SAMPLERS, *OTHERS])
def test_steps_begin_where_there_is_noise_alone(family: StableDiffusion, name: str):
    """The last time of 1000, as WebUIs do: from a lower one on, unit noise is taken for some of a picture."""
    for spacing in ("trailing", "linspace"):
        times = [int(t) for t in make_scheduler(family, Play(sampler=name, steps=4, spacing=spacing), "cpu").timesteps]
        assert times[0] == 999 and times == sorted(times, reverse=True) and times[-1] < 260
    if name in ("dpm++", "ddim", "euler"):
        assert [int(t) for t in make_scheduler(family, Play(sampler=name, steps=4), "cpu").timesteps] == [999, 749, 499, 249]


@pytest.mark.parametrize("name", ["dpm++", "euler", "heun", "unipc"])
def test_karras_steps_are_those_of_the_paper(family: StableDiffusion, name: str):
    made = make_scheduler(family, Play(sampler=name, steps=4, spacing="karras"), "cpu")
    alphas = made.alphas_cumprod.double()
    ends = (((1 - alphas) / alphas).sqrt()[[-1, 0]]) ** (1 / 7)
    wanted = (ends[0] + torch.arange(4).double() / 3 * (ends[1] - ends[0])) ** 7  # eq. 5, rho 7
    found = made.sigmas.unique().flip(0)[:4].double()
    assert_close(found, wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("settings", "told"), [
    (Play(sampler="lcm", steps=12), True), (Play(sampler="tcd", steps=4), True), (Play(steps=4), False), (Play(), False)
], ids=str)  # fmt: skip
def test_fakes_of_samplers_for_distilled_models_are_said_not_to_be_the_opponents_own(settings: Play, told: bool):
    nothing = Survey()
    assert any("is made for distilled models" in line for line in summary.warnings(nothing, Settings(play=settings))) == told


def test_fewer_steps_are_further_from_enough_and_those_of_a_stochastic_sampler_are_not_compared(family: StableDiffusion):
    noise = torch.stack([gaussian(family.latent_shape, "x", i) for i in range(4)])
    conds = family.encode_captions(["red apple", "dog face", "pizza", "key"]), family.encode_captions([""] * 4)
    found = [coarseness(family, noise, *conds, Play(steps=steps, guidance=2.0)) or 0.0 for steps in (3, 6, 12)]
    assert found[0] > 2 * found[1] > 4 * found[2] > 0
    incomparable = [Play(sampler="euler-a", steps=3), Play(sampler="lcm", steps=3), Play(sampler="ddim", eta=1.0, steps=3)]
    for settings in (*incomparable, Play(sampler="ddim", steps=501)):  # of 1000 times
        assert coarseness(family, noise, *conds, settings) is None


@pytest.mark.parametrize("name", ["dpm++", "ddim", "euler", "euler-a", "heun", "unipc", "lcm"])
def test_a_fake_may_begin_with_a_noised_picture(family: StableDiffusion, name: str, monkeypatch: pytest.MonkeyPatch):
    """From pure noise as ever; from a share of it, at the last time that has at most so much, as `Path.noise` mixes it."""
    seen: list[tuple[int, Tensor]] = []
    whole = family.denoise
    monkeypatch.setattr(family, "denoise", lambda x, t, c: (seen.append((int(t[0]), x)), whole(x, t, c))[1])
    real, eps = (torch.stack([gaussian(family.latent_shape, who, i) for i in range(3)]) for who in ("real", "x"))
    settings = Play(sampler=name, steps=4, guidance=1.0)
    usual = fakes(family, settings)
    count = len(seen)
    half = fakes(family, begun := settings.model_copy(update={"start": 0.5}), real=real)
    again = seen[count:]
    assert again[0][0] == 499 and len(again) <= (count + 1) // 2
    assert (count, len(again)) == (count_steps(family, settings), count_steps(family, begun))
    assert_close(again[0][1], family.path.noise(real, eps, torch.full((3,), 499)), atol=1e-3, rtol=1e-3)
    gone = [(x - real).square().mean() for x in (half, usual)]
    assert half.isfinite().all() and gone[0] < gone[1]
    assert torch.equal(fakes(family, settings.model_copy(update={"start": 0.5})), usual)  # without a picture there is none


def test_a_fake_that_begins_with_a_picture_begins_on_the_pictures_device(family: StableDiffusion):
    """Times are on the CPU, so that no step waits for the device."""
    scheduler = make_scheduler(family, Play(steps=8, start=0.5), "cpu")
    real = torch.zeros(2, *family.latent_shape, device="meta")
    times, x_t = _begin(family, scheduler, real, real, 0.5)
    assert (times.device.type, x_t.device.type, x_t.shape) == ("cpu", "meta", real.shape)


def test_a_start_that_leaves_no_step_is_refused(family: StableDiffusion):
    settings = Play(steps=4, start=0.2)
    with pytest.raises(SpinliteError, match=r"as little noise as play\.start = 0\.2") as error:
        make_scheduler(family, settings, "cpu")
    assert error.value.fix == "set play.start = 0.25 or more"
    fakes(family, settings.model_copy(update={"start": 0.25}), real=torch.zeros(3, *family.latent_shape))


def test_where_steps_lean_to_noise_more_of_them_are_left_out(family: StableDiffusion, monkeypatch: pytest.MonkeyPatch):
    """With a shift of 3 the time after half of the steps is 0.75, so that a start of 0.5 leaves fewer than half."""
    monkeypatch.setattr(family, "schedule", lambda name, spacing, steps, *_: flow_schedule(name, spacing, steps, 3.0, "cpu"))
    assert [count_steps(family, Play(sampler="euler", steps=20, start=start)) for start in (1.0, 0.75, 0.5)] == [20, 10, 5]


def test_whole_paths_can_not_begin_with_a_picture():
    with pytest.raises(SpinliteError, match=r"play\.points needs paths from pure noise, but play.start = 0.6"):
        Settings(play=Play(points=2, start=0.6))
