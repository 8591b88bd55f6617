"""Finds the fastest memory settings with which a preset fits into a card's memory."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from spinlite.config.settings import Play, Settings
from spinlite.errors import SpinliteError
from spinlite.memory.device import Levers, apply_pins
from spinlite.plan.card import GIB, Card
from spinlite.plan.phase_costs import PICTURES, PhaseCosts
from spinlite.training.step import required_errors

CostsOf = Callable[[str, str], PhaseCosts]  # (precision, quantize) -> the costs

PLAY_BATCHES = (16, 8, 4, 2, 1)
JUDGED = 64  # held-out pictures that are judged, at most
GAIN = 0.97  # a faster setting must take less than this share of the time, else the plainer one is used


@dataclass(frozen=True)
class Combination:
    """One combination of memory settings, with the memory (bytes of the card) and time (seconds per round) of each phase."""

    levers: Levers
    memory: dict[str, int]  # bytes, by phase
    seconds: dict[str, float]  # per round, by phase

    @property
    def peak(self) -> int:
        return max(self.memory.values())

    @property
    def time(self) -> float:
        return sum(self.seconds.values())


class Fit:
    """Combinations of memory settings for one preset on one card; `train` and `heldout` are numbers of pictures."""

    def __init__(self, settings: Settings, card: Card, costs_of: CostsOf, train: int, heldout: int) -> None:
        """`costs_of(precision, quantize)` gives what each phase costs with a network in that form."""
        self._settings, self._card, self._costs_of = settings, card, costs_of
        self._method = settings.build_method()
        self._names = required_errors(self._method)
        self._train, self._heldout = train, min(heldout, JUDGED)

    def choose(self, kept: Levers | None = None) -> tuple[Combination, list[Combination]]:
        """(the fastest combination that fits, all that were tried). `kept` is chosen without trying others, as long as it fits.

        A quantised base changes results, so it is used only if nothing else fits: first 8 bits, then 4. Raises SpinliteError if
        nothing fits.
        """
        if kept and (row := self.row(kept)).peak <= self._card.memory:
            return row, [row]
        tried: list[Combination] = []
        for quantize in [self._settings.memory.quantize] if self._settings.memory.quantize else ["none", "int8", "nf4"]:
            rows = list(self._rows(quantize))
            tried += rows
            fitting = [row for row in rows if row.peak <= self._card.memory]
            if fitting:
                plain = fitting[0]
                best = min(fitting, key=lambda row: row.time)
                return (best if best.time < GAIN * plain.time else plain), tried
        least = min(tried, key=lambda row: row.peak)
        phase = max(least.memory, key=lambda name: least.memory[name])
        pins = [f"memory.{name}" for name in self._settings.memory.model_dump(exclude_none=True) if name != "vram"]
        raise SpinliteError(
            f"{self._card.name} has {self._card.memory / GIB:.1f} GB for this run, but even the smallest memory settings need "
            f"{least.peak / GIB:.1f} GB ({phase}: {describe_levers(least.levers, self._settings.learn.batch)})",
            fix=(f"remove {', '.join(pins)}, so that the plan can choose; or " if pins else "") + "use a smaller base model, "
            "or more memory: raise memory.vram if it is set, and try spinlite plan PRESET --vram GB for other cards",
        )

    def _rows(self, quantize: str) -> Iterator[Combination]:
        """For each way to keep activations, the largest batches that fit, or else the smallest; the plainest way first.

        Where there is no room for the base itself, it is only the way that needs least.
        """
        memory = self._settings.memory
        pairs = sum(name.startswith("policy") for name in self._names) > 1
        ways = [
            (checkpointing, one_graph)
            for checkpointing in (False, True) if memory.checkpointing in (None, checkpointing)
            for one_graph in (False, True) if memory.one_graph in (None, one_graph)
            if pairs or memory.one_graph is not None or not one_graph
        ]  # fmt: skip
        if self._card.needs(self._costs_of(self._card.precision, quantize).net) > self._card.memory:
            ways = ways[-1:]
        first: Combination | None = None
        for checkpointing, one_graph in ways:
            if checkpointing and first and first.peak <= self._card.memory and not first.levers.micro_batch:
                continue  # a whole batch fits without it, and computing activations twice is never faster
            levers = Levers(quantize=quantize, checkpointing=checkpointing, one_graph=one_graph)
            row = self._largest(levers)
            first = first or row
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
        """Memory and time with these settings, after those that [memory] pins are put in place."""
        levers = apply_pins(replace(levers, precision=self._card.precision), self._settings.memory)
        batch = self._settings.learn.batch
        if levers.micro_batch and levers.micro_batch >= batch and self._settings.memory.micro_batch is None:
            levers = replace(levers, micro_batch=None)
        costs = self._costs_of(levers.precision, levers.quantize)
        if self._settings.memory.cache_opponent is None and self._card.kind == "cuda" and levers.micro_batch:
            levers = replace(levers, cache_opponent=self._caching_is_faster(costs, levers))
        memory = {name: self._card.needs(count) for name, count in self._bytes(costs, levers).items()}
        return Combination(levers, memory, self._seconds(costs, levers))

    def _caching_is_faster(self, costs: PhaseCosts, levers: Levers) -> bool:
        in_step, ahead = (self._sample_seconds(costs, n) for n in (levers.micro_batch or 1, levers.play_batch))
        return ahead < GAIN * in_step

    def _bytes(self, costs: PhaseCosts, levers: Levers) -> dict[str, int]:
        """Peak of tensors in each phase."""
        s, play, names = costs.sizes, levers.play_batch, self._names
        policy = sum(name.startswith("policy") for name in names)
        played = costs.playing(play, levers.merge)
        live = len(names) > policy and not levers.cache_opponent
        pixels = max(0, play - PICTURES) * 3 * s.width * s.height * 4
        return {
            "encode": costs.encoding() + pixels,
            "play": played,
            "learn": costs.learning(policy, live, levers, self._settings.learn.batch),
            "judge": max(played + s.cast, costs.drawing(), costs.measuring(play)),
        }

    def _sample_seconds(self, costs: PhaseCosts, samples: int, merged: bool = False) -> float:
        """Seconds per sample of a forward pass with so many samples."""
        card = self._card
        return costs.forward(samples, merged).seconds(samples, card.operations, card.bytes, card.start) / samples

    def _seconds(self, costs: PhaseCosts, levers: Levers) -> dict[str, float]:
        """Seconds of each phase of a round."""
        settings, card = self._settings, self._card

        def sampling(play: Play) -> float:
            guided = 2 if play.guidance > 1 else 1
            forward = guided * self._sample_seconds(costs, levers.play_batch * guided, levers.merge)
            return costs.steps(play) * forward

        samples = settings.learn.length * settings.learn.batch
        micro = levers.micro_batch or settings.learn.batch
        policy = sum(name.startswith("policy") for name in self._names)
        rows = micro * (1 if levers.one_graph else policy)  # real and fake are one batch, or take turns
        graph = costs.graph(levers.checkpointing, rows).seconds(rows, card.operations, card.bytes, card.start) / rows
        again = (policy - 1) * self._sample_seconds(costs, micro) if levers.one_graph else 0
        others = (len(self._names) - policy) * self._sample_seconds(costs, levers.play_batch if levers.cache_opponent else rows)
        errors = 5 * settings.judge.draws * self._sample_seconds(costs, levers.play_batch)
        return {
            "play": self._train * sampling(settings.play) if self._method.fakes == "played" else 0.0,
            "learn": samples * (policy * graph + again + others),
            "judge": self._heldout * (2 * sampling(settings.drawn) + errors),
        }


def describe_levers(levers: Levers, batch: int) -> str:
    """The memory settings of a combination, in words."""
    base = {"none": "", "int8": "base in 8 bits, ", "nf4": "base in 4 bits, "}[levers.quantize]
    way = "saves memory: one activation graph at a time" if levers.one_graph else "fast: real and fake in one batch"
    samples = f"{levers.micro_batch or batch} of {batch} samples per batch"
    return f"{base}{way}{', checkpointing' * levers.checkpointing}, {samples}"


def _halves(batch: int) -> list[int]:
    """The batch size, then halved again and again, rounded up, down to 1."""
    sizes = [batch]
    while sizes[-1] > 1:
        sizes.append((sizes[-1] + 1) // 2)
    return sizes
