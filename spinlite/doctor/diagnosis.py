"""From facts to findings: what is well, what is not, why, and the one thing that mends it."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from spinlite.doctor.computer import Card, Computer
from spinlite.doctor.known import PIP, driver_command, remedy, serves, torch_command

PYTHONS = ((3, 11), (3, 14))  # the first and the last that torch 2.13 and spinlite share
GB = 1024  # MiB


@dataclass(frozen=True)
class Finding:
    """A line of the screen. "fail": training can't run as it is; "warn": it can, but worse than it could; "note": as it is."""

    mark: Literal["ok", "note", "warn", "fail"]
    what: str
    found: str
    why: str = ""
    fix: str = ""


def diagnose(c: Computer) -> list[Finding]:
    """Every finding, in the order of the screen."""
    trials = [_half(c, "bf16"), _half(c, "fp16"), _sdpa(c), _xformers(c), _adamw8bit(c), _nf4(c), _step(c)]
    tried = [finding for finding in trials if finding] if c.torch else []
    return [*_system(c), _python(c), *_cards(c), *_driver(c), _torch(c), *tried, _packages(c), *_room(c)]


def _system(c: Computer) -> Iterator[Finding]:
    name = f"{c.system} {c.release} ({c.machine})" if c.system != "Linux" else f"{c.release} ({c.machine})"
    if c.wsl == 1:
        yield Finding("warn", "system", f"{name}, WSL 1", "WSL 1 sees no card", "in PowerShell: wsl --set-version DISTRO 2")
    elif c.system == "Darwin":
        yield Finding("warn", "system", name, "spinlite is tested on Linux and Windows; on a Mac nothing is")
    else:
        yield Finding("ok", "system", name + ", WSL 2" * (c.wsl == 2))
    if c.long_paths is False:
        yield Finding(
            "warn", "long paths", "off", "Windows refuses paths of more than 260 characters, which packages and caches have",
            r"in PowerShell, as administrator: Set-ItemProperty HKLM:\SYSTEM\CurrentControlSet\Control\FileSystem "
            "LongPathsEnabled 1",
        )  # fmt: skip
    if c.wsl and c.runs.startswith("/mnt/"):
        why = "WSL reads Windows' disks many times slower than its own"
        yield Finding("warn", "folder", c.runs, why, "cd ~   and work there")


def _python(c: Computer) -> Finding:
    found = ".".join(map(str, c.python)) + f", {c.bits}-bit" + ", free-threaded" * c.free_threaded
    command = "make a new environment with 64-bit Python 3.12: "
    command += "winget install -e --id Python.Python.3.12" if c.system == "Windows" else "python3.12 -m venv .venv"
    if c.bits != 64:
        return Finding("fail", "Python", found, "torch exists for 64-bit Python only", command)
    if c.python[:2] > PYTHONS[1]:
        oldest, newest = (".".join(map(str, version)) for version in PYTHONS)
        mark = "warn" if c.torch else "fail"
        why = f"newer than what spinlite and torch are built for ({oldest} to {newest})"
        return Finding(mark, "Python", found, why, command)
    if c.free_threaded:
        return Finding("warn", "Python", found, "several packages have no build for a free-threaded Python", command)
    return Finding("ok", "Python", found)


def _cards(c: Computer) -> Iterator[Finding]:
    card = c.nvidia
    if not card:
        others = [other for other in c.cards if other.vendor in ("amd", "other")]
        if others and not (c.torch and c.torch.device != "cpu"):
            yield Finding(
                "warn", "card", ", ".join(other.name for other in others),
                "spinlite is tested on NVIDIA's cards and on CPUs; without torch for this card training runs on the CPU",
            )  # fmt: skip
        elif not others:
            yield Finding(
                "warn", "card", "none found",
                "training runs on the CPU: enough for `spinlite train demo`, far too slow for SD 1.5 and SDXL",
            )  # fmt: skip
        return
    total, free = card.total, card.free
    if c.torch and c.torch.total:
        total, free = c.torch.total, c.torch.free
    found = _card(card) + (f", {total / GB:.1f} GB, {free / GB:.1f} free" if total and free is not None else "")
    if _ancient(card):
        yield Finding("warn", "card", found, "too old for any torch that spinlite runs on: training runs on the CPU")
    elif total and total < 5.5 * GB:
        yield Finding("warn", "card", found, "the smallest presets are made for 8 GB", "spinlite train demo   (fits anywhere)")
    elif total and free is not None and free < 0.7 * total:
        used = (total - free) / GB
        fix = "close browsers, games and image generators; `nvidia-smi` lists them"
        yield Finding("warn", "card", found, f"other programs hold {used:.1f} GB, which training can't have", fix)
    else:
        yield Finding("ok", "card", found)
    if re.search(r"GTX 16[356]0", card.name):
        fix = "add --set memory.precision=fp32"
        yield Finding("warn", "GTX 16", "no bf16", "its fp16 convolutions give NaN in some drivers", fix)


def _card(card: Card) -> str:
    return card.name + (f" (sm_{''.join(map(str, card.capability))})" if card.capability else "")


def _ancient(card: Card) -> bool:
    """Whether no torch that spinlite runs on has machine code for a card."""
    return bool(card.capability) and card.capability < (5, 0)


def _driver(c: Computer) -> Iterator[Finding]:
    card = c.nvidia
    if not card:
        return
    cuda = c.driver_cuda
    found = f"{card.driver or 'unknown'}" + (f", serves CUDA up to {'.'.join(map(str, cuda))}" if cuda else "")
    wanted = c.torch and re.match(r"CUDA (\d+)", c.torch.build)
    new = card.capability and card.capability >= (10, 0)
    if not card.driver and not cuda and not (c.torch and c.torch.device.startswith("cuda")):
        yield Finding("fail", "driver", "none answers", "the card can't be used without NVIDIA's driver", driver_command(c))
    elif new and cuda and cuda < (12, 8):
        yield Finding("fail", "driver", found, "this card needs a driver that serves CUDA 12.8 or later", driver_command(c))
    elif wanted and cuda and cuda[0] < int(wanted[1]):
        why = f"this torch is built for CUDA {wanted[1]}, which the driver does not serve"
        yield Finding("fail", "driver", found, why, driver_command(c) if new else f"{torch_command(c)}   (or a newer driver)")
    else:
        yield Finding("ok", "driver", found)


def _torch(c: Computer) -> Finding:
    trial, torch, card = c.trials.get("torch"), c.torch, c.nvidia
    if not torch:
        if trial and not trial.missing:
            why, fix = remedy(trial.said, c) or ("it can't be imported", torch_command(c))
            return Finding("fail", "torch", trial.said, why, fix)
        return Finding("fail", "torch", "not installed", "nothing can run without it", torch_command(c))
    found = f"{torch.version} ({torch.build})"
    if torch.build == "CPU" and card and not _ancient(card):
        return Finding("fail", "torch", found, f"built for CPUs only: it can't use the {card.name}", torch_command(c))
    if torch.build == "CPU":
        return Finding("ok", "torch", found)
    if torch.device == "cpu" and card and c.visible is not None and c.visible.strip() in ("", "-1"):
        fix = "set CUDA_VISIBLE_DEVICES=0" if c.system == "Windows" else "unset CUDA_VISIBLE_DEVICES"
        return Finding("fail", "torch", found, f"CUDA_VISIBLE_DEVICES={c.visible!r} hides the card", fix)
    if torch.device == "cpu":
        why, fix = remedy(torch.trouble, c) or (f"it finds no card: {torch.trouble}", driver_command(c))
        return Finding("fail" if card else "warn", "torch", found, why, fix if card else "")
    if torch.build.startswith("ROCm"):
        return Finding("warn", "torch", f"{found} on {torch.name}", "spinlite is not tested on AMD's cards")
    if torch.capability and torch.archs and not serves(torch.archs, torch.capability):
        arch = "sm_" + "".join(map(str, torch.capability))
        return Finding("fail", "torch", found, f"it holds no machine code for {arch}, the {torch.name}", torch_command(c))
    return Finding("ok", "torch", f"{found} on {torch.name or torch.device}")


def _half(c: Computer, name: str) -> Finding | None:
    trial = c.trials.get(name)
    if trial and trial.ok:
        return Finding("ok", name, trial.said)
    return trial and Finding("note", name, trial.said, "the other precisions are used instead")


def _sdpa(c: Computer) -> Finding | None:
    trial = c.trials.get("sdpa")
    if trial and not trial.ok:
        why, fix = remedy(trial.said, c) or ("torch's attention does not run here", torch_command(c))
        return Finding("fail", "attention", trial.said, why, fix)
    return trial and Finding("ok", "attention", f"SDPA: {trial.said}")


def _xformers(c: Computer) -> Finding | None:
    trial = c.trials.get("xformers")
    if not trial or trial.ok:
        return trial and Finding("ok", "xformers", trial.said)
    if trial.missing:
        return Finding("note", "xformers", "not installed", "torch's own attention is used, which is about as fast")
    version = c.installed.get("xformers", "")
    if c.torch and c.torch.device == "cpu":
        return Finding("note", "xformers", f"{version} does not run on a CPU", "torch's own attention is used")
    return Finding(
        "warn", "xformers", f"{version}: {trial.said}", "built for another torch, or not for this card; torch's is used",
        "python -m pip uninstall -y xformers",
    )  # fmt: skip


def _bitsandbytes(c: Computer) -> tuple[str, str]:
    """(why, fix) where a part of bitsandbytes does not run."""
    has, tested = c.installed.get("bitsandbytes"), c.tested.get("bitsandbytes", "")
    command = f"{PIP} --force-reinstall --no-deps bitsandbytes" + f"=={tested}" * bool(tested)
    if not has:
        return "not installed", command
    if any(text.startswith("bitsandbytes") for text in c.unmet):
        return f"bitsandbytes {has} is too old for this torch", command
    return f"bitsandbytes {has} does not run on this device", command


def _adamw8bit(c: Computer) -> Finding | None:
    trial = c.trials.get("adamw8bit")
    if not trial or trial.ok:
        return trial and Finding("ok", "8-bit AdamW", trial.said)
    why, fix = _bitsandbytes(c)
    fix += "   (or train with --set learn.optimizer=adamw)"
    return Finding("fail", "8-bit AdamW", trial.said or "bitsandbytes is missing", why, fix)


def _nf4(c: Computer) -> Finding | None:
    trial = c.trials.get("nf4")
    if not trial or trial.ok:
        return trial and Finding("ok", "NF4", trial.said)
    why, fix = _bitsandbytes(c)
    return Finding("warn", "NF4", trial.said or "bitsandbytes is missing", f"{why}: no base model in 4 bits", fix)


def _step(c: Computer) -> Finding | None:
    trial = c.trials.get("step")
    if not trial or trial.ok:
        return trial and Finding("ok", "training", trial.said)
    why, fix = remedy(trial.said, c) or ("one step of training failed", _pins(c))
    return Finding("fail", "training", trial.said, why, fix)


def _packages(c: Computer) -> Finding:
    if c.unmet:
        return Finding("fail", "packages", "not as needed: " + ", ".join(c.unmet), "spinlite needs other versions", _pins(c))
    other = [f"{name} {c.installed[name]} (tested: {pin})" for name, pin in c.tested.items()
             if name in c.installed and c.installed[name].partition("+")[0] != pin]  # fmt: skip
    if other:
        why = "allowed, but not the versions that spinlite was tested with"
        return Finding("note", "packages", ", ".join(other), why, _pins(c))
    return Finding("ok", "packages", f"{len(c.installed)} as tested" if c.installed else "not known")


def _pins(c: Computer) -> str:
    """The command that puts in the tested versions of what differs, or of everything; the build of torch stays."""
    pins = [f"{name}=={pin}" for name, pin in c.tested.items()
            if name not in ("torch", "xformers") and c.installed.get(name) != pin]  # fmt: skip
    old = any(text.startswith("torch>") for text in c.unmet)
    return torch_command(c) if old else f"{PIP} {' '.join(pins)}" if pins else f"{PIP} --upgrade --force-reinstall -e ."


def _room(c: Computer) -> Iterator[Finding]:
    if c.runs_free is not None:
        found = f"{c.runs_free / GB:.0f} GB free for runs ({c.runs})"
        low = c.runs_free < 5 * GB
        fix = "free some space, or put runs elsewhere: --runs FOLDER" if low else ""
        yield Finding("warn" if low else "ok", "disk", found, "snapshots, fakes and caches may not fit" if low else "", fix)
    if c.hub_free is not None:
        low = c.hub_free < 10 * GB
        elsewhere = "setx HF_HOME D:\\models" if c.system == "Windows" else "export HF_HOME=/a/larger/disk"
        found = f"{c.hub_free / GB:.0f} GB free for downloaded base models ({c.hub})"
        yield Finding("warn" if low else "ok", "disk", found, "SDXL takes 7 GB" if low else "", elsewhere if low else "")
    if c.memory:
        low = c.memory < 15 * GB
        why = "loading SDXL takes about 12 GB for a moment" if low else ""
        wsl = "in Windows, write [wsl2] and memory=24GB into %UserProfile%\\.wslconfig, then: wsl --shutdown"
        fix = wsl if low and c.wsl else "close other programs before a run" if low else ""
        why += ": WSL gets half of the computer's memory unless told otherwise" if low and c.wsl else ""
        yield Finding("warn" if low else "ok", "memory", f"{c.memory / GB:.0f} GB", why, fix)
