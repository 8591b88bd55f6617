"""The one loop that trains the demo's networks: seeded by step, averaged, resumable, with an ETA."""

import copy
import math
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

SAY_SECONDS, KEEP_SECONDS = 15, 120


def device() -> torch.device:
    """A GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def draws(seed: int, step: int) -> torch.Generator:
    """All chance of one step, on the CPU: a resumed run draws what an unbroken one would have drawn."""
    return torch.Generator().manual_seed(seed * 1_000_003 + step)


def twin(net: nn.Module) -> nn.Module:
    """A network with the same weights in memory and gradients of its own."""
    other = copy.deepcopy(net)
    for own, shared in zip(other.parameters(), net.parameters(), strict=True):
        own.data = shared.data
    return other


class Crew:
    """Finds a batch's gradient in equal parts, one a core: no core waits for another within an operation."""

    def __init__(self, net: nn.Module, loss_at: Callable[..., Tensor]) -> None:
        cores = 1 if torch.cuda.is_available() else os.cpu_count() or 1
        self.parts = 4 if cores >= 4 else 2 if cores >= 2 else 1
        self.nets = [net, *(twin(net) for _ in range(self.parts - 1))]
        self.loss_at = loss_at
        self.pool = ThreadPoolExecutor(self.parts, initializer=torch.set_num_threads, initargs=(1,))

    def drive(self, part: int, step: int) -> Tensor:
        """Leaves the gradient of one part on its network; returns its share of the mean loss."""
        loss = self.loss_at(self.nets[part], step, part, self.parts) / self.parts
        loss.backward()
        return loss.detach()

    def gradient(self, step: int) -> Tensor:
        """Leaves the gradient of the whole batch on the first network; returns the mean loss, on the CPU."""
        losses = list(self.pool.map(self.drive, range(self.parts), [step] * self.parts))
        for other in self.nets[1:]:
            for mine, its in zip(self.nets[0].parameters(), other.parameters(), strict=True):
                if its.grad is not None:
                    mine.grad = its.grad if mine.grad is None else mine.grad.add_(its.grad)
                    its.grad = None
        return torch.stack(losses).sum().cpu()


def rate(step: int, steps: int, warmup: int = 200) -> float:
    """Linear warm-up, a plateau until 40 %, then half a cosine to zero: (step, steps) -> share of the peak rate."""
    if step < warmup:
        return (step + 1) / warmup
    late = max(0.0, (step / steps - 0.4) / 0.6)
    return 0.5 + 0.5 * math.cos(math.pi * min(1.0, late))


def average(mean: nn.Module, net: nn.Module, step: int, longest: float) -> None:
    """Moves the running mean of the weights one step towards the network's."""
    share = 1 - min(longest, (1 + step) / (10 + step))
    with torch.no_grad():
        for slow, fast in zip(mean.parameters(), net.parameters(), strict=True):
            slow.lerp_(fast, share)


@dataclass
class State:
    """All that a resumed run needs, and where it is kept."""

    path: Path
    net: nn.Module
    mean: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    seconds: float = 0.0

    def read(self) -> None:
        """Goes on from the file, if there is one."""
        if not self.path.exists():
            return
        found = torch.load(self.path, map_location=device(), weights_only=True)
        for name in ("net", "mean", "optimizer"):
            getattr(self, name).load_state_dict(found[name])
        self.step, self.seconds = found["step"], found["seconds"]
        print(f"{self.path.stem}: going on from step {self.step}", flush=True)

    def write(self) -> None:
        """Replaces the file in one move, so that a kill leaves the old one."""
        parts = {name: getattr(self, name).state_dict() for name in ("net", "mean", "optimizer")}
        torch.save({**parts, "step": self.step, "seconds": self.seconds}, self.path.with_suffix(".part"))
        os.replace(self.path.with_suffix(".part"), self.path)


def say(name: str, step: int, steps: int, losses: Tensor, left: float) -> None:
    """One line of progress; `left` is in seconds."""
    print(f"{name}: step {step}/{steps}  loss {losses.mean():.4f}  {left / 60:.1f} min left", flush=True)


def train(
    net: nn.Module, mean: nn.Module, loss_at: Callable[..., Tensor], keep: Callable[[], None], *, path: Path, steps: int,
    peak: float, longest: float = 0.999,
) -> None:  # fmt: skip
    """Trains `net` and keeps its running mean in `mean`; goes on from the checkpoint at `path`, where there is one.

    `loss_at(net, step, part, parts)` is the mean loss of one of `parts` equal parts of a step's batch.
    `keep()` is called after each checkpoint.
    """
    optimizer = torch.optim.AdamW(net.parameters(), lr=peak, betas=(0.9, 0.99), fused=True)
    state = State(path, net, mean, optimizer)
    state.read()
    crew = Crew(net, loss_at)
    first, earlier = state.step, state.seconds
    began = kept = reported = time.monotonic()
    losses: list[Tensor] = []
    for step in range(first, steps):
        for group in optimizer.param_groups:
            group["lr"] = peak * rate(step, steps)
        losses.append(crew.gradient(step))
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average(mean, net, step, longest)
        now, last = time.monotonic(), step + 1 == steps
        state.step, state.seconds = step + 1, earlier + now - began
        if now - reported > SAY_SECONDS or last:
            left = (now - began) / (step + 1 - first) * (steps - step - 1)
            say(path.stem, step + 1, steps, torch.stack(losses), left)
            losses, reported = [], now
        if now - kept > KEEP_SECONDS or last:
            state.write()
            keep()
            kept = now
    print(f"{path.stem}: {state.step} steps in {state.seconds / 60:.1f} min, all runs together", flush=True)
