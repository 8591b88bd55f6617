"""The fastest way to fit a preset into a card's memory."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from spinlite.config.settings import Settings
from spinlite.errors import SpinliteError
from spinlite.memory.device import Levers, apply_pins
from spinlite.plan.card import GIB, Card
from spinlite.plan.phase_costs import PICTURES, PhaseCosts
from spinlite.training.step import required_errors

PLAY_BATCHES = (16, 8, 4, 2, 1)
JUDGED = 64  # held-out pictures that are measured and played at the most
GAIN = 0.97  # of the time: below that a faster setting is taken, else the plainer one


@dataclass(frozen=True)
class Combination:
    """One combination of levers: what it would take in each phase (bytes of the card) and in a round (seconds)."""

    levers: Levers
    memory: dict[str, int]  # by phase
    seconds: dict[str, float]  # of a round, by phase

    @property
    def peak(self) -> int:
        return max(self.memory.values())

    @property
    def time(self) -> float:
        return sum(self.seconds.values())


class Fit:
    """Combinations of levers for one preset on one card; `train` and `heldout` are numbers of pictures."""

    def __init__(self, settings: Settings, card: Card, stages: Any, train: int, heldout: int) -> None:
        """`stages(precision, quantize)` gives the rehearsed networks."""
        self._settings, self._card, self._stages = settings, card, stages
        self._method = settings.build_method()
        self._names = required_errors(self._method)
        self._train, self._heldout = train, min(heldout, JUDGED)

    def choose(self, kept: Levers | None = None) -> tuple[Combination, list[Combination]]:
        """(the fastest that fits, all that were looked at); `kept`, as long as those fit.

        A quantised base changes results, so it is taken only where nothing else fits: 8 bits before 4. Raises SpinliteError
        where nothing does.
        """
        if kept and (row := self.row(kept)).peak <= self._card.memory:
            return row, [row]
        looked: list[Combination] = []
        for quantize in [self._settings.memory.quantize] if self._settings.memory.quantize else ["none", "int8", "nf4"]:
            rows = list(self._rows(quantize))
            looked += rows
            fitting = [row for row in rows if row.peak <= self._card.memory]
            if fitting:
                plain = fitting[0]
                best = min(fitting, key=lambda row: row.time)
                return (best if best.time < GAIN * plain.time else plain), looked
        least = min(looked, key=lambda row: row.peak)
        phase = max(least.memory, key=lambda name: least.memory[name])
        pins = [f"memory.{name}" for name in self._settings.memory.model_dump(exclude_none=True) if name != "vram"]
        raise SpinliteError(
            f"{self._card.name} has {self._card.memory / GIB:.1f} GB for this run, and the least that was found needs "
            f"{least.peak / GIB:.1f} GB ({phase}: {describe_levers(least.levers, self._settings.learn.batch)})",
            fix=(f"remove {', '.join(pins)}, which the plan then chooses; or " if pins else "") + "take a smaller base model, "
            "or more memory (memory.vram is what a run may take; spinlite plan PRESET --vram GB shows what more would do)",
        )

    def _rows(self, quantize: str) -> Iterator[Combination]:
        """For every way to hold activations the largest batches that fit, or else the smallest; the plainest way first."""
        memory = self._settings.memory
        ways = [(checkpointing, one_graph) for checkpointing in (False, True) for one_graph in (False, True)]
        pairs = sum(name.startswith("policy") for name in self._names) > 1
        done: Combination | None = None
        for checkpointing, one_graph in ways:
            if memory.checkpointing not in (None, checkpointing) or memory.one_graph not in (None, one_graph):
                continue
            if one_graph and not pairs and memory.one_graph is None:
                continue
            if checkpointing and done and done.peak <= self._card.memory and not done.levers.micro_batch:
                continue  # a whole batch fits without: nothing that computes twice is faster
            levers = Levers(quantize=quantize, checkpointing=checkpointing, one_graph=one_graph)
            row = self._largest(levers)
            done = done or row
            yield row

    def _largest(self, levers: Levers) -> Combination:
        memory = self._settings.memory
        batch = self._settings.learn.batch
        micros = [memory.micro_batch] if memory.micro_batch else _halves(batch)
        plays = [memory.play_batch] if memory.play_batch else PLAY_BATCHES
        row = None
        for play in plays:
            row = self.row(replace(levers, play_batch=play, micro_batch=micros[-1]))
            if max(row.memory[phase] for phase in ("encode", "play", "judge")) <= self._card.memory:
                break
        assert row
        for micro in micros:
            row = self.row(replace(levers, play_batch=row.levers.play_batch, micro_batch=micro))
            if row.memory["learn"] <= self._card.memory:
                break
        return row

    def row(self, levers: Levers) -> Combination:
        """What these levers would take, what [memory] pins being put in place."""
        levers = apply_pins(replace(levers, precision=self._card.precision), self._settings.memory)
        batch = self._settings.learn.batch
        if levers.micro_batch and levers.micro_batch >= batch and self._settings.memory.micro_batch is None:
            levers = replace(levers, micro_batch=None)
        stage: PhaseCosts = self._stages(levers.precision, levers.quantize)
        if self._settings.memory.cache_opponent is None and self._card.kind == "cuda" and levers.micro_batch:
            levers = replace(levers, cache_opponent=self._ahead_pays(stage, levers))
        memory = {name: self._card.needs(count) for name, count in self._bytes(stage, levers).items()}
        return Combination(levers, memory, self._seconds(stage, levers))

    def _ahead_pays(self, stage: PhaseCosts, levers: Levers) -> bool:
        there, ahead = (self._once(stage, n) for n in (levers.micro_batch or 1, levers.play_batch))
        return ahead < GAIN * there

    def _bytes(self, stage: PhaseCosts, levers: Levers) -> dict[str, int]:
        """Tensors at the most in each phase. Where the LoRA is merged to play, the weights without it are kept beside."""
        s, play, names = stage.sizes, levers.play_batch, self._names
        mine = sum(name.startswith("policy") for name in names)
        played = stage.playing(play) + s.targets * levers.merge
        pixels = max(0, play - PICTURES) * 3 * s.width * s.height * 4
        return {
            "encode": stage.encoding() + pixels,
            "play": played,
            "learn": stage.learning(mine, len(names) > mine and not levers.cache_opponent, levers, self._settings.learn.batch),
            "judge": max(played, stage.drawing(), stage.measuring(play)),
        }

    def _once(self, stage: PhaseCosts, samples: int) -> float:
        """Seconds of one sample's way through the network, so many at once."""
        card = self._card
        return stage.forward.seconds(samples, card.operations, card.bytes, card.start) / samples

    def _seconds(self, stage: PhaseCosts, levers: Levers) -> dict[str, float]:
        """Of one round."""
        settings, card = self._settings, self._card
        guided = 2 if settings.play.guidance > 1 else 1
        fake = settings.play.steps * guided * self._once(stage, levers.play_batch * guided)
        samples = settings.learn.updates * settings.learn.batch
        micro = levers.micro_batch or settings.learn.batch
        mine = sum(name.startswith("policy") for name in self._names)
        graph = stage.graph(levers.checkpointing).seconds(micro, card.operations, card.bytes, card.start) / micro
        again = (mine - 1) * self._once(stage, micro) if levers.one_graph else 0
        others = (len(self._names) - mine) * self._once(stage, levers.play_batch if levers.cache_opponent else micro)
        errors = 5 * settings.judge.draws * self._once(stage, levers.play_batch)
        return {
            "play": self._train * fake if self._method.fakes == "played" else 0.0,
            "learn": samples * (mine * graph + again + others),
            "judge": self._heldout * (2 * fake + errors),
        }


def describe_levers(levers: Levers, batch: int) -> str:
    """The memory levers of a combination, for people."""
    base = {"none": "", "int8": "base in 8 bits, ", "nf4": "base in 4 bits, "}[levers.quantize]
    graphs = "one graph at a time" if levers.one_graph else "graphs at once"
    return f"{base}{graphs}{', checkpointing' * levers.checkpointing}, {levers.micro_batch or batch} of {batch} at once"


def _halves(batch: int) -> list[int]:
    """A batch, and what is left of it halved again and again."""
    found = [batch]
    while found[-1] > 1:
        found.append((found[-1] + 1) // 2)
    return found
