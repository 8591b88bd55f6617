"""On Windows, GPU memory that runs out spills into the computer's own: no error, but up to 100 times slower. Say so."""

import contextlib
import platform
from collections.abc import Callable, Iterator
from typing import Any

import torch

from spinlite.progress import Watch

GB = 2**30
Room = tuple[int, int, int]  # (free on the card, its total, reserved by this process), bytes


def spilled(before: Room, now: Room) -> int:
    """Bytes that this process holds outside of the card: above the card's total, or above what was free `before`."""
    free, total, reserved = before
    return max(0, now[2] - total, now[2] - reserved - free)


def watch_spill(watch: Watch, device: torch.device) -> Watch:
    """On Windows and in WSL with a GPU: a watch that also reports spills. Elsewhere too little memory is an error: `watch`."""
    system = platform.uname()
    if device.type != "cuda" or not (system.system == "Windows" or "microsoft" in system.release.lower()):
        return watch
    return SpillWatch(watch, lambda: (*torch.cuda.mem_get_info(device), torch.cuda.memory_reserved(device)))


class SpillWatch:
    """A watch that says, at most once in each phase, that memory has spilled."""

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
        before, reported = self._room(), False
        with self._watch.phase(title, total) as progress:

            def look(done: int, of: int, **found: float) -> None:
                nonlocal reported
                progress(done, of, **found)
                if not reported and (over := spilled(before, self._room())):
                    reported = True
                    self._watch.say(
                        f"{title}: {over / GB:.1f} GB have spilled from the card into shared memory. Windows reports no error, "
                        "but this is up to 100 times slower. Close other programs that use the GPU, or lower memory.play_batch "
                        'and memory.micro_batch. Or set "CUDA - Sysmem Fallback Policy" to "Prefer No Sysmem Fallback" in the '
                        "NVIDIA Control Panel: spinlite then lowers its memory settings by itself"
                    )

            yield look
