"""The facts that a diagnosis needs. Sizes are in MiB; None and "" mean unknown."""

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
    driver: str = ""  # version of NVIDIA's driver; "": it does not answer
    capability: Version | None = None


@dataclass(frozen=True)
class Torch:
    """What torch reports about itself and the device that it would use."""

    version: str
    build: str  # "CPU", "CUDA 13.0", "ROCm 6.4"
    device: str = "cpu"  # "cuda:0", "mps", "cpu"
    name: str = ""  # the card that it uses
    capability: Version | None = None
    archs: tuple[str, ...] = ()  # the architectures that it has machine code for: "sm_86", "compute_120"
    total: int | None = None
    free: int | None = None
    trouble: str = ""  # why a GPU build finds no card


@dataclass(frozen=True)
class Trial:
    """The result of a small real computation in its own process."""

    ok: bool
    said: str = ""  # a few words if it went well, else the error
    missing: bool = False  # the package is not installed


@dataclass(frozen=True)
class Computer:
    """Everything that a diagnosis depends on. The defaults are a good computer without a card."""

    system: str = "Linux"  # "Windows", "Darwin"
    release: str = ""
    machine: str = "x86_64"
    wsl: int | None = None  # 1 or 2 inside Windows' subsystem for Linux
    long_paths: bool | None = None  # Windows only
    python: Version = (3, 12, 0)
    bits: int = 64
    free_threaded: bool = False
    cards: tuple[Card, ...] = ()
    driver_cuda: Version | None = None  # the highest CUDA that NVIDIA's driver supports
    visible: str | None = None  # CUDA_VISIBLE_DEVICES
    torch: Torch | None = None
    trials: Mapping[str, Trial] = field(default_factory=dict)
    installed: Mapping[str, str] = field(default_factory=dict)  # package -> version, for the packages in `tested`
    tested: Mapping[str, str] = field(default_factory=dict)  # package -> version that spinlite was tested with
    unmet: tuple[str, ...] = ()  # requirements of spinlite that are not met: "torch>=2.6 (2.4.0)"
    memory: int | None = None  # RAM
    runs: str = ""  # the folder for runs
    runs_free: int | None = None
    hub: str = ""  # the folder for downloaded base models
    hub_free: int | None = None

    @property
    def nvidia(self) -> Card | None:
        """The NVIDIA card with the most memory."""
        return max((c for c in self.cards if c.vendor == "nvidia"), key=lambda c: c.total or 0, default=None)
