"""The graphics cards of this computer, found without torch."""

import contextlib
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from spinlite.doctor.computer import Card, Version

VENDORS = {"0x10de": "nvidia", "0x1002": "amd", "0x8086": "intel"}
DISPLAYS = r"SYSTEM\CurrentControlSet\Control\Class\{4d36e968-e325-11ce-bfc1-08002be10318}"
SMI = (r"C:\Windows\System32\nvidia-smi.exe", r"C:\Program Files\NVIDIA Corporation\NVSMI\nvidia-smi.exe",
       "/usr/lib/wsl/lib/nvidia-smi")  # fmt: skip


def find_cards() -> tuple[list[Card], Version | None]:
    """The cards, and the highest CUDA that NVIDIA's driver supports."""
    cards, cuda = nvidia_smi()
    return cards or list(windows_cards() if sys.platform == "win32" else linux_cards()), cuda


def nvidia_smi() -> tuple[list[Card], Version | None]:
    """NVIDIA's cards as its driver reports them, and the highest CUDA that it supports; nothing if it does not answer."""
    program = shutil.which("nvidia-smi") or next((place for place in SMI if Path(place).is_file()), None)
    if not program:
        return [], None
    text = _output([program, "-q", "-x"])
    capabilities = _output([program, "--query-gpu=compute_cap", "--format=csv,noheader"])
    return read_smi(text, capabilities)


def read_smi(text: str, capabilities: str) -> tuple[list[Card], Version | None]:
    """The output of `nvidia-smi -q -x`, and lines with a compute capability each -> (cards, highest CUDA)."""
    try:
        log = ElementTree.fromstring(text)
    except ElementTree.ParseError:
        return [], None
    lines = [version(line) for line in capabilities.splitlines()]
    gpus = log.findall("gpu")
    cards = [
        Card(
            name=gpu.findtext("product_name") or "an NVIDIA card", driver=log.findtext("driver_version") or "",
            total=_mib(gpu.findtext("fb_memory_usage/total")), free=_mib(gpu.findtext("fb_memory_usage/free")),
            capability=lines[i] if len(lines) == len(gpus) else None,
        )
        for i, gpu in enumerate(gpus)
    ]  # fmt: skip
    return cards, version(log.findtext("cuda_version") or "")


def linux_cards(root: Path = Path("/")) -> Iterator[Card]:
    """Cards as the kernel sees them: from NVIDIA's driver, on the PCI bus, or passed through to WSL."""
    names = sorted((root / "proc/driver/nvidia/gpus").glob("*/information"))
    for place in names:
        model = re.search(r"Model:\s*(.+)", place.read_text(errors="replace"))
        yield Card(model[1].strip() if model else "an NVIDIA card", driver=_kernel_driver(root))
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        with contextlib.suppress(OSError):
            vendor = VENDORS.get((device / "vendor").read_text().strip(), "other")
            display = (device / "class").read_text().startswith("0x03")
            if display and vendor != "other" and not (names and vendor == "nvidia"):
                yield Card({"nvidia": "an NVIDIA card", "amd": "an AMD card", "intel": "an Intel card"}[vendor], vendor)
    if not names and (root / "dev/nvidia0").exists():
        yield Card("an NVIDIA card", driver=_kernel_driver(root))
    elif (root / "dev/dxg").exists():
        yield Card("a card of Windows, passed through to WSL", "other")


def windows_cards() -> Iterator[Card]:
    """Cards as Windows lists them."""
    for i in range(16):
        key = rf"{DISPLAYS}\{i:04d}"
        name = registered(key, "DriverDesc", str) or ""
        makers = [maker for word, maker in (("NVIDIA", "nvidia"), ("Radeon", "amd"), ("Intel", "intel")) if word in name]
        if makers:
            total = registered(key, "HardwareInformation.qwMemorySize", int)
            yield Card(name, makers[0], total // 2**20 if total else None)


def version(text: str) -> Version | None:
    """The first number with dots in a text: "12.4" -> (12, 4)."""
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(int(part) for part in found[0].split(".")) if found else None


def registered(key: str, name: str, kind: Callable[[Any], Any]) -> Any:
    """A value of the Windows registry under HKEY_LOCAL_MACHINE; None if it does not exist, or on other systems."""
    if sys.platform != "win32":
        return None
    import winreg

    try:
        with winreg.OpenKey(winreg.HKEY_LOCAL_MACHINE, key) as opened:
            return kind(winreg.QueryValueEx(opened, name)[0])
    except (OSError, ValueError, TypeError):
        return None


def _kernel_driver(root: Path) -> str:
    place = root / "proc/driver/nvidia/version"
    found = version(place.read_text(errors="replace")) if place.is_file() else None
    return ".".join(map(str, found or ()))


def _output(words: Sequence[str]) -> str:
    try:
        done = subprocess.run(words, capture_output=True, timeout=30, check=False)
        return done.stdout.decode(errors="replace") if done.returncode == 0 else ""
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _mib(text: str | None) -> int | None:
    """ "12288 MiB" -> 12288."""
    found = re.match(r"(\d+) MiB", text or "")
    return int(found[1]) if found else None
