"""What is compared: arms, each a method with its settings, at a scale that is common to all."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from spinlite.config.load import validate_settings
from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.runs.files import fingerprint
from spinlite.training.step import required_errors

SPIN = {"name": "spin", "beta": 2000.0, "anchor": 0.0}
SEPPO = {"name": "seppo", "beta": 2000.0, "anchor": 0.0}
DPO = SEPPO | {"reference": "base", "gate": "none"}
SFT = {"name": "sft"}
SUDO = {"name": "sudo"}
DDIM = {"sampler": "ddim", "eta": 1.0}


@dataclass(frozen=True)
class Scale:
    """What all arms share. `passes`: forward and backward passes of the policy in a round, an image each."""

    passes: int
    rounds: int
    batch: int
    rank: int
    play_steps: int
    pictures: int  # of the demo's own, in the order of their names; they are split into learnt and held out
    captions: int  # that the snapshots are judged on
    draws: int  # (t, noise) at which each judged picture's error is measured
    judge_steps: int  # of the good sampler, that no run used
    guidance: float = 3.0  # of play, and of the samples that are judged
    lr: float = 5e-4
    base: str = "mixed web"  # which of the demo's bases there have been

    @property
    def made_of(self) -> str:
        """What names the results of base and reals."""
        return fingerprint(vars(self))


FULL = Scale(1280, 3, 16, 16, 12, 128, 128, 2, 30)
SMALL = Scale(16, 1, 4, 2, 3, 12, 16, 1, 4)


@dataclass(frozen=True)
class Arm:
    """A method with its settings.

    seeds    0 .. seeds - 1
    changed  settings by section, over those that all arms share
    rounds   none: the scale's
    effort   passes a round, times the scale's
    start    the arm whose LoRA, of the same seed, this one starts from, instead of from the base
    judged   the rounds whose snapshots are measured; none: the last alone
    """

    name: str
    title: str
    group: str
    method: Mapping[str, Any]
    seeds: int = 3
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    rounds: int | None = None
    effort: float = 1.0
    pictures: int | None = None
    start: str = ""
    judged: tuple[int, ...] = ()


GROUPS = {
    "headline": "the methods at equal policy passes",
    "time": "the cheap methods at SPIN's time",
    "stay": "moving on, or staying in round 1",
    "beta": "β, the leash",
    "rate": "the learning rate",
    "rounds": "does the gap open with rounds",
    "anchor": "plain fine-tuning beside the preference",
    "near": "a base that is near its pictures already",
    "guidance": "the guidance of the fakes",
    "gates": "SePPO: gates and references",
    "others": "DRO, and SPIN on the opponent's path",
    "data": "few pictures",
}


def _rate(lr: float) -> dict[str, dict[str, Any]]:
    return {"learn": {"lr": lr}}


ARMS = (
    Arm("sft", "SFT", "headline", SFT, 5, judged=(1, 2, 3)),
    Arm("spin", "SPIN", "headline", SPIN, 5, judged=(1, 2, 3)),
    Arm("seppo", "SePPO (sign, random)", "headline", SEPPO, 5, judged=(1, 2, 3)),
    Arm("sudo", "SUDO", "headline", SUDO, 5, judged=(1, 2, 3)),
    Arm("dpo", "DPO, fakes of the base", "headline", DPO, 5, judged=(1, 2, 3)),
    Arm("sft-time", "SFT, SPIN's time", "time", SFT, 3, effort=2.125),
    Arm("sudo-time", "SUDO, SPIN's time", "time", SUDO, 3, effort=1.5),
    Arm("spin-stay", "SPIN, 3 rounds' work in round 1", "stay", SPIN, 3, rounds=1, effort=3),
    *(Arm(f"spin-beta-{beta}", f"SPIN β {beta}", "beta", SPIN | {"beta": float(beta)}) for beta in (500, 5000, 20000)),
    Arm("spin-rounds", "SPIN, 10 rounds", "rounds", SPIN, 3, rounds=10, judged=(3, 6, 10)),
    Arm("sft-rounds", "SFT, 10 rounds", "rounds", SFT, 3, rounds=10, judged=(3, 6, 10)),
    Arm("dpo-rounds", "DPO, fakes of the base, 10 rounds", "rounds", DPO, 3, rounds=10, judged=(3, 6, 10)),
    Arm("spin-anchored", "SPIN, anchor 1, 10 rounds", "rounds", SPIN | {"anchor": 1.0}, 3, rounds=10, judged=(3, 6, 10)),
    *(Arm(f"spin-anchor-{share}", f"SPIN, anchor {share}", "anchor", SPIN | {"anchor": share}) for share in (0.05, 0.2)),
    *(
        Arm(f"{name}-lr-{rate}", f"{title}, lr {rate}", "rate", method, changed=_rate(float(rate)))
        for rate in ("1e-4", "1e-3", "2e-3") for name, title, method in (("sft", "SFT", SFT), ("spin", "SPIN", SPIN))
    ),
    Arm("near", "SFT, 8 rounds' work in one", "near", SFT, rounds=1, effort=8),
    Arm("near-sft", "then SFT", "near", SFT, start="near"),
    Arm("near-spin", "then SPIN", "near", SPIN, start="near"),
    Arm("spin-guidance-1", "SPIN, fakes without guidance", "guidance", SPIN, changed={"play": {"guidance": 1.0}}),
    Arm("spin-guidance-4", "SPIN, fakes at guidance 4", "guidance", SPIN, changed={"play": {"guidance": 4.0}}),
    Arm("seppo-none", "SePPO (no gate, random)", "gates", SEPPO | {"gate": "none"}),
    Arm("seppo-indicator", "SePPO (indicator, random)", "gates", SEPPO | {"gate": "indicator"}),
    Arm("seppo-switch", "SePPO (switch to SFT, random)", "gates", SEPPO | {"gate": "sft"}),
    Arm("seppo-each", "SePPO (sign, random for each picture)", "gates", SEPPO | {"reference": "each"}),
    Arm("seppo-previous", "SePPO (sign, previous)", "gates", SEPPO | {"reference": "previous"}),
    Arm("seppo-base", "SePPO (sign, base)", "gates", SEPPO | {"reference": "base"}),
    Arm("dro", "DRO β 1000", "others", {"name": "dro"}),
    Arm("spin-path", "SPIN on the path (DDIM, η 1)", "others", SPIN, changed={"play": DDIM | {"points": 4}}),
    Arm("spin-ddim", "SPIN, fakes of the same sampler", "others", SPIN, changed={"play": DDIM}),
    *(
        Arm(f"{name}-data-{count}", f"{title}, {count} pictures", "data", method, pictures=count)
        for count in (16, 48) for name, title, method in (("sft", "SFT", SFT), ("spin", "SPIN", SPIN))
    ),
)  # fmt: skip
NAMED = {arm.name: arm for arm in ARMS}


@dataclass(frozen=True)
class Cell:
    """An arm with a seed."""

    arm: Arm
    seed: int
    scale: Scale

    @property
    def name(self) -> str:
        return f"{self.arm.name}-s{self.seed}"

    @property
    def rounds(self) -> int:
        return self.arm.rounds or self.scale.rounds

    @property
    def judged(self) -> list[int]:
        """The rounds whose snapshots are measured."""
        return [k for k in self.arm.judged if k <= self.rounds] or [self.rounds]

    @property
    def pictures(self) -> int:
        return min(self.arm.pictures or self.scale.pictures, self.scale.pictures)

    @property
    def start(self) -> "Cell | None":
        """The cell whose LoRA this one starts from."""
        return Cell(NAMED[self.arm.start], self.seed, self.scale) if self.arm.start else None

    @property
    def policy_errors(self) -> int:
        """How many errors of the policy a pair has: 1 for SFT, 2 for all others."""
        method = validate_settings({"method": dict(self.arm.method)}).build_method()
        return sum(name.startswith("policy") for name in required_errors(method))

    @property
    def updates(self) -> int:
        """In a round: as many as make the passes."""
        return max(1, round(self.arm.effort * self.scale.passes / (self.policy_errors * self.scale.batch)))

    def settings(self, folder: str, init_lora: str | None = None) -> Settings:
        """The run's settings, those of the study written out here and nowhere else: no preset changes them."""
        scale = self.scale
        tree: dict[str, Any] = {
            "model": {"base": "demo", "targets": "all", "rank": scale.rank},
            "data": {"folder": folder, "heldout": 0.06},
            "method": dict(self.arm.method),
            "play": {"steps": scale.play_steps, "guidance": scale.guidance},
            "learn": {"updates": self.updates, "batch": scale.batch, "lr": scale.lr},
            "judge": {"stop": False, "draws": 1, "captions": 1},
            "run": {"rounds": self.rounds, "seed": self.seed},
        }
        for section, values in self.arm.changed.items():
            tree[section] |= values
        if init_lora:
            tree["model"]["init_lora"] = init_lora
        return validate_settings(tree)

    @property
    def made_of(self) -> str:
        """What names its results: everything that is set, and nothing of where it lies."""
        parts = [self.arm.method, self.arm.changed, self.arm.effort, self.pictures, self.rounds, self.seed, vars(self.scale)]
        return fingerprint(parts, self.start.made_of if self.start else None)


def cells(scale: Scale, only: Sequence[str] = (), seeds: Sequence[int] = ()) -> Iterator[Cell]:
    """The cells asked for, by arms or groups: the most wanted first, all arms of a group with a seed before the next seed.

    Raises SpinliteError for a name that is neither.
    """
    for name in only:
        if name not in NAMED and name not in GROUPS:
            raise SpinliteError(f"no arm or group {name!r}", fix=f"one of: {', '.join([*GROUPS, *NAMED])}")
    headline = [arm for arm in ARMS if arm.group == "headline"]
    further = [arm for arm in ARMS if arm.group != "headline"]
    wanted = [arm for arm in ARMS if arm.name in only or arm.group in only]
    for arms in [wanted] if only else [headline, further]:
        for seed in range(max(arm.seeds for arm in arms)):
            for arm in arms:
                if seed < arm.seeds and (not seeds or seed in seeds):
                    yield Cell(arm, seed, scale)
