"""The facts that a diagnosis is made of. Sizes are in MiB; None and "" are: could not be found out."""

from collections.abc import Mapping
from dataclasses import dataclass, field

Version = tuple[int, ...]


@dataclass(frozen=True)
class Card:
    """A graphics card, as the system (not torch) sees it."""

    name: str
    vendor: str = "nvidia"  # or "amd", "intel", "other"
    total: int | None = None
    free: int | None = None
    driver: str = ""  # NVIDIA's: "" where none answers
    capability: Version | None = None


@dataclass(frozen=True)
class Torch:
    """What torch says of itself, and of the device it would use."""

    version: str
    build: str  # "CPU", "CUDA 13.0", "ROCm 6.4"
    device: str = "cpu"  # "cuda:0", "mps", "cpu"
    name: str = ""  # of the card that it uses
    capability: Version | None = None
    archs: tuple[str, ...] = ()  # "sm_86", "compute_120": what it holds machine code for
    total: int | None = None
    free: int | None = None
    trouble: str = ""  # why a GPU build uses no card


@dataclass(frozen=True)
class Trial:
    """How a small real computation went, in a process of its own."""

    ok: bool
    said: str = ""  # a few words where it went well, else the error
    missing: bool = False  # the package is not installed


@dataclass(frozen=True)
class Computer:
    """Everything that a diagnosis depends on. The defaults are a computer on which all is well, but for a card."""

    system: str = "Linux"  # "Windows", "Darwin"
    release: str = ""
    machine: str = "x86_64"
    wsl: int | None = None  # 1 or 2 inside Windows' subsystem for Linux
    long_paths: bool | None = None  # Windows only
    python: Version = (3, 12, 0)
    bits: int = 64
    free_threaded: bool = False
    cards: tuple[Card, ...] = ()
    driver_cuda: Version | None = None  # the highest CUDA that NVIDIA's driver serves
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    torch: Torch | None = None
    trials: Mapping[str, Trial] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)  # versions by package, of those that spinlite was tested with
    tested: Mapping[str, str] = field(default_factory=dict)
    unmet: tuple[str, ...] = ()  # requirements of spinlite's that are not fulfilled, as "torch>=2.6 (2.4.0)"
    memory: int | None = None  # RAM
    runs: str = ""  # where runs go
    runs_free: int | None = None
    hub: str = ""  # where downloaded base models are kept
    hub_free: int | None = None

    @property
    def nvidia(self) -> Card | None:
        """The NVIDIA card with the most memory."""
        return max((c for c in self.cards if c.vendor == "nvidia"), key=lambda c: c.total or 0, default=None)
