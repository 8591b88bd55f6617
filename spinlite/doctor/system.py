"""Checks what surrounds torch and the card: the operating system, Python, packages, disks and RAM."""

from collections.abc import Iterator

from spinlite.doctor.computer import Computer
from spinlite.doctor.finding import Finding
from spinlite.doctor.known import PIP, torch_command

PYTHONS = ((3, 11), (3, 14))  # the first and last versions that torch 2.13 and spinlite share
GB = 1024  # MiB


def check_system(c: Computer) -> Iterator[Finding]:
    """The operating system."""
    name = f"{c.system} {c.release} ({c.machine})" if c.system != "Linux" else f"{c.release} ({c.machine})"
    if c.wsl == 1:
        yield Finding("warn", "system", f"{name}, WSL 1", "WSL 1 sees no card", "in PowerShell: wsl --set-version DISTRO 2")
    elif c.system == "Darwin":
        yield Finding("warn", "system", name, "spinlite is tested on Linux and Windows, not on a Mac")
    else:
        yield Finding("ok", "system", name + ", WSL 2" * (c.wsl == 2))
    if c.long_paths is False:
        yield Finding(
            "warn", "long paths", "off", "Windows refuses paths longer than 260 characters, as packages and caches have them",
            r"in PowerShell, as administrator: Set-ItemProperty HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem "
            "LongPathsEnabled 1",
        )  # fmt: skip
    if c.wsl and c.runs.startswith("/mnt/"):
        why = "WSL reads the disks of Windows many times slower than its own"
        yield Finding("warn", "folder", c.runs, why, "type cd ~   and work there")


def check_python(c: Computer) -> Finding:
    """The version and build of Python."""
    found = ".".join(map(str, c.python)) + f", {c.bits}-bit" + ", free-threaded" * c.free_threaded
    command = "make a new environment with 64-bit Python 3.12: "
    command += "winget install -e --id Python.Python.3.12" if c.system == "Windows" else "python3.12 -m venv .venv"
    if c.bits != 64:
        return Finding("fail", "Python", found, "torch exists for 64-bit Python only", command)
    if c.python[:2] > PYTHONS[1]:
        oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
        mark = "warn" if c.torch else "fail"
        why = f"newer than the versions that spinlite and torch support ({oldest} to {newest})"
        return Finding(mark, "Python", found, why, command)
    if c.free_threaded:
        return Finding("warn", "Python", found, "several packages have no build for a free-threaded Python", command)
    return Finding("ok", "Python", found)


def check_packages(c: Computer) -> Finding:
    """The versions of the packages that spinlite needs."""
    if c.unmet:
        return Finding("fail", "packages", ", ".join(c.unmet), "spinlite needs other versions", tested_versions(c))
    other = [f"{name} {c.installed[name]} (tested: {pin})" for name, pin in c.tested.items()
             if name in c.installed and c.installed[name].partition("+")[0] != pin]  # fmt: skip
    if other:
        why = "these should work, but spinlite was tested with other versions"
        return Finding("note", "packages", ", ".join(other), why, tested_versions(c))
    return Finding("ok", "packages", f"{len(c.installed)} in their tested versions" if c.installed else "unknown")


def tested_versions(c: Computer) -> str:
    """The command that installs the tested versions of packages that differ, or of everything. Keeps the build of torch."""
    pins = [f"{name}=={pin}" for name, pin in c.tested.items()
            if name not in ("torch", "xformers") and c.installed.get(name) != pin]  # fmt: skip
    old = any(text.startswith("torch>") for text in c.unmet)
    return torch_command(c) if old else f"{PIP} {' '.join(pins)}" if pins else f"{PIP} --upgrade --force-reinstall -e ."


def check_room(c: Computer) -> Iterator[Finding]:
    """Disk space and RAM."""
    if c.runs_free is not None:
        found = f"{c.runs_free / GB:.0f} GB free for runs ({c.runs})"
        low = c.runs_free < 5 * GB
        fix = "free some space, or keep runs elsewhere: --runs FOLDER" if low else ""
        yield Finding("warn" if low else "ok", "disk", found, "snapshots, fakes and caches may not fit" if low else "", fix)
    if c.hub_free is not None:
        low = c.hub_free < 10 * GB
        elsewhere = "setx HF_HOME D:\\models" if c.system == "Windows" else "export HF_HOME=/a/larger/disk"
        found = f"{c.hub_free / GB:.0f} GB free for downloaded base models ({c.hub})"
        yield Finding("warn" if low else "ok", "disk", found, "SDXL alone takes 7 GB" if low else "", elsewhere if low else "")
    if c.memory:
        low = c.memory < 15 * GB
        why = "loading SDXL needs about 12 GB of RAM for a moment" if low else ""
        wsl = "in Windows, write the lines [wsl2] and memory=24GB into %UserProfile%\\.wslconfig, then: wsl --shutdown"
        fix = wsl if low and c.wsl else "close other programs before a run" if low else ""
        why += ", and WSL gets half of the computer's RAM by default" if low and c.wsl else ""
        yield Finding("warn" if low else "ok", "memory", f"{c.memory / GB:.0f} GB", why, fix)
