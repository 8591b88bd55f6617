"""The screen of `spinlite doctor`."""

import dataclasses
import json
from collections.abc import Sequence

from rich.console import Console as Screen
from rich.text import Text

from spinlite.doctor.computer import Computer
from spinlite.doctor.finding import Finding

COLORS = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red"}
INDENT = 21


def show(screen: Screen, computer: Computer, findings: Sequence[Finding]) -> None:
    """A line for each finding, with the reason and the fix below it if something is wrong; the verdict comes last."""
    for finding in findings:
        screen.print(Text.assemble("  ", (f"{finding.mark:<5}", COLORS[finding.mark]), f" {finding.what:<12} ", finding.found))
        for name in ("why", "fix"):
            if text := getattr(finding, name):
                screen.print(Text.assemble(" " * INDENT, (f"{name}: ", "bold" if name == "fix" else "dim"), text))
    screen.print(Text(verdict(computer, findings), style="bold"))


def as_json(computer: Computer, findings: Sequence[Finding]) -> str:
    """Facts, findings and verdict, for programs."""
    tree = {
        "ready": ready(findings),
        "verdict": verdict(computer, findings),
        "findings": [dataclasses.asdict(finding) for finding in findings],
        "computer": dataclasses.asdict(computer),
    }
    return json.dumps(tree, ensure_ascii=False, indent=2)


def ready(findings: Sequence[Finding]) -> bool:
    """Whether training can run here."""
    return not any(finding.mark == "fail" for finding in findings)


def verdict(computer: Computer, findings: Sequence[Finding]) -> str:
    """The result in one sentence."""
    fails = [finding.what for finding in findings if finding.mark == "fail"]
    if fails:
        return f"Not ready: fix {', '.join(fails)} first, then type `spinlite doctor` again."
    if computer.torch and computer.torch.device == "cpu":
        return "Ready for the demo, on the CPU. Type: spinlite train demo"
    return "Ready. To see which preset fits which card, type: spinlite presets"
