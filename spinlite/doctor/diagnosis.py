"""From facts to findings: what works, what does not, why, and how to fix it."""

import re
from collections.abc import Iterator

from spinlite.doctor.computer import Card, Computer
from spinlite.doctor.finding import Finding
from spinlite.doctor.known import PIP, driver_command, remedy, serves, torch_command
from spinlite.doctor.system import GB, check_packages, check_python, check_room, check_system, tested_versions


def diagnose(c: Computer) -> list[Finding]:
    """Every finding, in the order of the screen."""
    trials = [_half(c, "bf16"), _half(c, "fp16"), _sdpa(c), _xformers(c), _adamw8bit(c), _nf4(c), _step(c)]
    tried = [finding for finding in trials if finding] if c.torch else []
    return [
        *check_system(c), check_python(c), *_cards(c), *_driver(c), _torch(c), *tried, check_packages(c), *check_room(c),
    ]  # fmt: skip


def _cards(c: Computer) -> Iterator[Finding]:
    card = c.nvidia
    if not card:
        others = [other for other in c.cards if other.vendor in ("amd", "other")]
        if others and not (c.torch and c.torch.device != "cpu"):
            yield Finding(
                "warn", "card", ", ".join(other.name for other in others),
                "spinlite is tested on NVIDIA's cards and on CPUs. Without a torch for this card it trains on the CPU",
            )  # fmt: skip
        elif not others:
            yield Finding(
                "warn", "card", "none found",
                "training runs on the CPU: fast enough for `spinlite train demo`, far too slow for SD 1.5 and SDXL",
            )  # fmt: skip
        return
    total, free = card.total, card.free
    if c.torch and c.torch.total:
        total, free = c.torch.total, c.torch.free
    found = _card(card) + (f", {total / GB:.1f} GB, {free / GB:.1f} free" if total and free is not None else "")
    if _ancient(card):
        yield Finding("warn", "card", found, "too old for any torch that spinlite supports, so training runs on the CPU")
    elif total and total < 5.5 * GB:
        yield Finding("warn", "card", found, "the smallest presets need 8 GB", "type spinlite train demo   (it fits anywhere)")
    elif total and free is not None and free < 0.7 * total:
        used = (total - free) / GB
        fix = "close browsers, games and image generators; `nvidia-smi` lists them"
        yield Finding("warn", "card", found, f"other programs hold {used:.1f} GB that training can't use", fix)
    else:
        yield Finding("ok", "card", found)
    if re.search(r"GTX 16[356]0", card.name):
        fix = "add --set memory.precision=fp32"
        yield Finding("warn", "GTX 16", "no bf16", "fp16 convolutions give NaN with some drivers", fix)


def _card(card: Card) -> str:
    return card.name + (f" (sm_{''.join(map(str, card.capability))})" if card.capability else "")


def _ancient(card: Card) -> bool:
    """Whether no torch that spinlite supports can run on the card."""
    return bool(card.capability) and card.capability < (5, 0)


def _driver(c: Computer) -> Iterator[Finding]:
    card = c.nvidia
    if not card:
        return
    cuda = c.driver_cuda
    found = f"{card.driver or 'unknown'}" + (f", supports CUDA up to {'.'.join(map(str, cuda))}" if cuda else "")
    built_for = c.torch and re.match(r"CUDA (\d+)", c.torch.build)
    new = card.capability and card.capability >= (10, 0)
    if not card.driver and not cuda and not (c.torch and c.torch.device.startswith("cuda")):
        yield Finding("fail", "driver", "no answer", "the card can't be used without NVIDIA's driver", driver_command(c))
    elif new and cuda and cuda < (12, 8):
        yield Finding("fail", "driver", found, "this card needs a driver that supports CUDA 12.8 or later", driver_command(c))
    elif built_for and cuda and cuda[0] < int(built_for[1]):
        why = f"this torch is built for CUDA {built_for[1]}, and the driver does not support that"
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
        return Finding("fail", "torch", found, f"it has no machine code for {arch}, the {torch.name}", torch_command(c))
    return Finding("ok", "torch", f"{found} on {torch.name or torch.device}")


def _half(c: Computer, name: str) -> Finding | None:
    trial = c.trials.get(name)
    if trial and trial.ok:
        return Finding("ok", name, trial.said)
    return trial and Finding("note", name, trial.said, "spinlite uses another precision instead")


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
        return Finding("note", "xformers", "not installed", "spinlite uses torch's own attention, which is about as fast")
    version = c.installed.get("xformers", "")
    if c.torch and c.torch.device == "cpu":
        return Finding("note", "xformers", f"{version} does not run on a CPU", "spinlite uses torch's own attention")
    return Finding(
        "warn", "xformers", f"{version}: {trial.said}", "built for another torch or card; spinlite uses torch's attention",
        "python -m pip uninstall -y xformers",
    )  # fmt: skip


def _bitsandbytes(c: Computer) -> tuple[str, str]:
    """(why, fix) if a part of bitsandbytes does not run."""
    installed, tested = c.installed.get("bitsandbytes"), c.tested.get("bitsandbytes", "")
    command = f"{PIP} --force-reinstall --no-deps bitsandbytes" + f"=={tested}" * bool(tested)
    if not installed:
        return "not installed", command
    if any(text.startswith("bitsandbytes") for text in c.unmet):
        return f"bitsandbytes {installed} is too old for this torch", command
    return f"bitsandbytes {installed} does not run on this device", command


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
    return Finding("warn", "NF4", trial.said or "bitsandbytes is missing", f"{why}: memory.quantize = nf4 is not possible", fix)


def _step(c: Computer) -> Finding | None:
    trial = c.trials.get("step")
    if not trial or trial.ok:
        return trial and Finding("ok", "training", trial.said)
    why, fix = remedy(trial.said, c) or ("one step of training failed", tested_versions(c))
    return Finding("fail", "training", trial.said, why, fix)
