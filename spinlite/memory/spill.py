"""GPU memory that spills into the computer's own, as Windows lets it: no error, and up to 100 times slower."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spinlite.progress import Watch

GB = 2**30
Room = tuple[int, int, int]  # (free on the card, its total, reserved by this process), bytes


def spilled(before: Room, now: Room) -> int:
    """Bytes that this process holds outside of the card: more than it has, or than it had free when the phase began."""
    free, total, reserved = before
    return max(0, now[2] - total, now[2] - reserved - free)


def watch_spill(watch: Watch, device: torch.device) -> Watch:
    """The watch, which on Windows and in WSL also tells of a spill; elsewhere memory that runs out is an error."""
    system = platform.uname()
    if device.type != "cuda" or not (system.system == "Windows" or "microsoft" in system.release.lower()):
        return watch
    return SpillWatch(watch, lambda: (*torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device)))


class SpillWatch:
    """A watch that tells once a phase when memory has spilled."""

    def __init__(self, watch: Watch, room: Callable[[], Room]) -> None:
        self._watch, self._room = watch, room

    def say(self, text: str) -> None:
        self._watch.say(text)

    def show_facts(self, facts: dict[str, str]) -> None:
        self._watch.show_facts(facts)

    def show_round(self, round_: int, rounds: int, found: dict[str, Any]) -> None:
        self._watch.show_round(round_, rounds, found)

    @contextlib.contextmanager
    def phase(self, title: str, total: int) -> Iterator[Callable[..., None]]:
        before, told = self._room(), False
        with self._watch.phase(title, total) as progress:

            def look(done: int, of: int, **found: float) -> None:
                nonlocal told
                progress(done, of, **found)
                if not told and (over := spilled(before, self._room())):
                    told = True
                    self._watch.say(
                        f"{title}: {over / GB:.1f} GB have spilled from the card into shared memory: no error on Windows, but "
                        "up to 100 times slower. Close other programs that draw, or lower memory.play_batch and "
                        'memory.micro_batch; with "CUDA - Sysmem Fallback Policy: Prefer No Sysmem Fallback" in the NVIDIA '
                        "Control Panel spinlite falls back to cheaper settings by itself"
                    )

            yield look
