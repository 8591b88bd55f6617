"""How a plan is shown: a table in a terminal, plain lines elsewhere, JSON for programs."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite.plan.plan import Plan
from spinlite.progress import GIB, describe_duration, describe_size


def as_json(plan: Plan) -> str:
    """Everything, for programs: sizes in bytes, times in seconds per round."""
    return json.dumps(asdict(plan) | {"peak": plan.peak}, ensure_ascii=False, indent=2)


DOING = {  # what a run does in each phase, in words
    "encode": "encodes pictures", "play": "plays", "learn": "learns", "judge": "judges a round",
}  # fmt: skip


def show(screen: Screen, plan: Plan, data: str, command: str) -> None:
    """Everything, for people. `data` says in words how much there is to learn from, `command` what to type next."""
    _show_facts(screen, {
        "model": plan.model, "note": plan.note, "method": plan.method,
        "card": f"{plan.card}: {plan.limit / GIB:.1f} GB for this run",
    })  # fmt: skip
    _show_ways(screen, plan)
    phases = ", ".join(f"{name} {describe_duration(value)}" for name, value in plan.seconds.items() if value)
    total = describe_duration(plan.rounds * sum(plan.seconds.values()))
    highest = max(plan.memory, key=lambda phase: plan.memory[phase])
    files = ", ".join(f"{name} {describe_size(value)}" for name, value in plan.disk.items())
    _show_facts(screen, {
        "peak": f"{plan.peak / GIB:.1f} GB of VRAM, while it {DOING.get(highest, highest)}; "
                f"it plays {_at_once(plan, plan.levers['play_batch'])}",
        "rounds": f"{plan.rounds} of {plan.round}",
        "time": f"about {total} for {plan.rounds} rounds with {data}",
        "a round": phases,
        "disk": f"{describe_size(sum(plan.disk.values()))} ({files})",
        "RAM": f"{plan.ram / GIB:.1f} GB",
    })  # fmt: skip
    for line in plan.assumed:
        screen.print(Text(f"  {line}", style="dim"))
    _show_facts(screen, {"next": command})


def _show_facts(screen: Screen, facts: dict[str, str]) -> None:
    for name, fact in facts.items():
        if fact:
            screen.print(Text.assemble("  ", (f"{name:<8}", "dim"), "  ", fact))


def _show_ways(screen: Screen, plan: Plan) -> None:
    """The ways to fit learning into memory, with their GB by phase and their time; the chosen one is marked."""
    fastest = next(sum(row["seconds"].values()) for row in plan.tried if row["chosen"])
    rows = [_cells(row, plan.memory, fastest) for row in plan.tried]
    if not screen.is_terminal:
        for row, cells in zip(plan.tried, rows, strict=True):
            phases = ", ".join(f"{name} {cell} GB" for name, cell in zip(plan.memory, cells[2:-1], strict=True))
            mark = "→" if row["chosen"] else " "
            screen.print(Text(f"  {mark} {cells[0]}, {_at_once(plan, cells[1])}: {phases}; time {cells[-1]}"))
        return
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("ways to learn")
    for heading in (f"{plan.thing}s\nat once", *(f"{phase}\nGB" for phase in plan.memory), "time"):
        table.add_column(heading, justify="right")
    for row, cells in zip(plan.tried, rows, strict=True):
        style = "bold" if row["chosen"] else "" if row["fits"] else "dim"
        table.add_row("→" if row["chosen"] else "", *cells, style=style)
    screen.print(table)


def _at_once(plan: Plan, count: int | str) -> str:
    """ "1 clip at once", "all pictures at once"."""
    return f"{count} {plan.thing}{'s' * (str(count) != '1')} at once"


def _cells(row: dict[str, Any], phases: dict[str, int], fastest: float) -> list[str]:
    levers = row["levers"]
    words = [f"base in {levers['quantize']}"] if levers["quantize"] != "none" else []
    words.append("saves memory" if levers["one_graph"] else "fast")
    words += ["checkpointing"] * levers["checkpointing"] + ["opponent first"] * levers["cache_opponent"]
    memory = [f"{row['memory'][phase] / GIB:.1f}" for phase in phases]
    time = f"{sum(row['seconds'].values()) / fastest:.2f}x" if row["fits"] else "too large"
    return [", ".join(words), str(levers["micro_batch"] or "all"), *memory, time]
