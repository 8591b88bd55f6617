"""How a plan is shown: a table in a terminal, plain lines elsewhere, JSON for programs."""

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console as Screen
from rich.table import Table
from rich.text import Text

from spinlite.plan.plan import Plan

GIB = 2**30


def as_json(plan: Plan) -> str:
    """Everything, for programs: bytes, and seconds of a round."""
    return json.dumps(asdict(plan) | {"peak": plan.peak}, ensure_ascii=False, indent=2)


def show(screen: Screen, plan: Plan, pictures: str) -> None:
    """Everything, for people."""
    fastest = next(sum(row["seconds"].values()) for row in plan.tried if row["chosen"])
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    table.add_column("how learning is fitted in")
    for heading in ("at once", *plan.memory, "time"):
        table.add_column(heading, justify="right")
    rows = [_cells(row, plan.memory, fastest) for row in plan.tried]
    for row, cells in zip(plan.tried, rows, strict=True):
        style = "bold" if row["chosen"] else "" if row["fits"] else "dim"
        table.add_row("→" if row["chosen"] else "", *cells, style=style)
    facts = {"model": plan.model, "method": plan.method, "card": f"{plan.card}: {plan.limit / GIB:.1f} GB for this run"}
    for name, fact in facts.items():
        screen.print(Text.assemble("  ", (f"{name:<8}", "dim"), " ", fact))
    if screen.is_terminal:
        screen.print(table)
    else:
        for row, cells in zip(plan.tried, rows, strict=True):
            phases = ", ".join(f"{name} {cell}" for name, cell in zip(plan.memory, cells[2:-1], strict=True))
            mark = "→" if row["chosen"] else " "
            screen.print(Text(f"  {mark} {cells[0]}, {cells[1]} at once: {phases} GB; time {cells[-1]}"))
    disk = sum(plan.disk.values())
    each = ", ".join(f"{name} {spoken(value)}" for name, value in plan.seconds.items() if value)
    total = plan.rounds * sum(plan.seconds.values())
    highest = max(plan.memory, key=lambda phase: plan.memory[phase])
    taken = ", ".join(f"{name} {size(value)}" for name, value in plan.disk.items())
    for name, fact in {
        "peak": f"{plan.peak / GIB:.1f} GB ({highest}); play {plan.levers['play_batch']} at once",
        "time": f"a round: {each}; {plan.rounds} rounds: {spoken(total)}, for {pictures}",
        "disk": f"{size(disk)} ({taken})",
        "RAM": f"{plan.ram / GIB:.1f} GB",
    }.items():
        screen.print(Text.assemble("  ", (f"{name:<8}", "dim"), " ", fact))
    for line in plan.assumed:
        screen.print(Text(f"  {line}", style="dim"))


def spoken(seconds: float) -> str:
    """A duration for people."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """Bytes for people."""
    return f"{count / GIB:.1f} GB" if count >= GIB else f"{count / 2**20:.0f} MB"


def _cells(row: dict[str, Any], phases: dict[str, int], fastest: float) -> list[str]:
    levers = row["levers"]
    words = [f"base in {levers['quantize']}"] if levers["quantize"] != "none" else []
    words.append("one graph at a time" if levers["one_graph"] else "graphs at once")
    words += ["checkpointing"] * levers["checkpointing"] + ["opponent ahead"] * levers["cache_opponent"]
    memory = [f"{row['memory'][phase] / GIB:.1f}" for phase in phases]
    time = f"{sum(row['seconds'].values()) / fastest:.2f}x" if row["fits"] else "does not fit"
    return [", ".join(words), str(levers["micro_batch"] or "all"), *memory, time]
