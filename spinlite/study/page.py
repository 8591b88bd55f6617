"""The study's page: its tables, put between marks in the text, and its figures. Made from results alone.

A table stands between `<!-- study:NAME -->` and `<!-- /study -->`; what is around it is prose, and stays as it is.
"""

import re
from pathlib import Path

from spinlite.runs.disk import write_bytes
from spinlite.study.arms import ARMS, GROUPS, NAMED
from spinlite.study.claims import claims_table
from spinlite.study.plots import draw
from spinlite.study.results import BASE, REALS, Table
from spinlite.study.samples import write_samples_sheet
from spinlite.study.stopping import stopping_table
from spinlite.study.words import MEASURES, number, signed

BESIDE = {  # rows beside a group's own, where SPIN's alone is not enough
    "time": ["sft", "sudo", "spin", "seppo", "dpo"], "gates": ["seppo"],
    "near": [], "rate": ["sft", "spin"], "data": ["sft", "spin"],
}  # fmt: skip
PAIRS = (  # arm and round, less another's
    ("pure SPIN, round 10 less round 3", "spin-rounds", 10, "spin-rounds", 3),
    ("pure SPIN less SFT, round 10", "spin-rounds", 10, "sft-rounds", 10),
    ("SPIN with the anchor, round 10 less round 3", "spin-anchored", 10, "spin-anchored", 3),
    ("SPIN with the anchor less pure SPIN, round 10", "spin-anchored", 10, "spin-rounds", 10),
    ("SPIN with the anchor less SFT, round 10", "spin-anchored", 10, "sft-rounds", 10),
    ("SPIN with the anchor less DPO, round 10", "spin-anchored", 10, "dpo-rounds", 10),
    ("SPIN's fakes without guidance less with, round 3", "spin-guidance-1", 3, "spin", 3),
    ("SPIN, fakes without guidance, less SFT, round 3", "spin-guidance-1", 3, "sft", 3),
)
HEADLINE = [arm.name for arm in ARMS if arm.group == "headline"]


def write_page(page: Path, figures: Path, table: Table) -> None:
    """Fill the page's tables and draw its figures into a folder, a group's own below its table.

    A page that is not there is made of tables alone.
    """
    text = page.read_text(encoding="utf-8") if page.exists() else bare()
    blocks = {"headline": headline(table), "measures": measures(table), "claims": claims_table(table)}
    blocks |= {"pairs": pairs(table), "done": done(table), "stopping": markdown(stopping_table(table.lines)), "regimes": ""}
    blocks |= {group: group_table(table, group) for group in GROUPS if group != "headline"}
    draw(table, figures)
    write_samples_sheet(figures)
    for name, block in blocks.items():
        if (figures / f"{name}.png").exists():
            block += f"\n\n![{GROUPS.get(name, 'SFT and SPIN by regime')}]({figures.name}/{name}.png)"
        pattern = rf"(<!-- study:{name} -->\n).*?(<!-- /study -->)"
        text = re.sub(pattern, lambda found, block=block: f"{found[1]}{block}\n{found[2]}", text, flags=re.DOTALL)
    page.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(page, text.encode())


def bare() -> str:
    """A page without prose."""
    names = ["headline", "measures", *(group for group in GROUPS if group != "headline"), "stopping", "claims", "done"]
    parts = [f"## {GROUPS.get(name, name)}\n\n<!-- study:{name} -->\n<!-- /study -->\n" for name in names]
    return "# The study\n\n" + "\n".join(parts)


def headline(table: Table) -> str:
    """KID of the headline arms, round by round, against base and SFT."""
    rows = [["", "seeds", "KID, round by round", "last round to the base", "last round to SFT", "core-seconds"]]
    if base := table.estimate("kid", BASE, 0):
        rows.append(["base", "–", number(base, "kid"), "", "", "–"])
    for name in filter(table.last, HEADLINE):
        last = table.last(name)
        to_sft = table.difference("kid", name, last, "sft", table.last("sft")) if name != "sft" else None
        rows.append([
            NAMED[name].title, seeds(table, name), by_round(table, name), difference(table, "kid", name, last),
            signed(to_sft, "kid"), seconds(table, name, last),
        ])  # fmt: skip
    return markdown(rows)


def measures(table: Table) -> str:
    """Every measure of the headline arms after their last round, and of base and reals."""
    rows = [["", *(heading for heading, _, _ in MEASURES.values())]]
    for title, name in (("real pictures", REALS), ("base", BASE)):
        rows.append([title, *(value(table, measure, name, 0) for measure in MEASURES)])
    for name in filter(table.last, HEADLINE):
        rows.append([NAMED[name].title, *(difference(table, measure, name, table.last(name)) for measure in MEASURES)])
    return markdown(rows)


def group_table(table: Table, group: str) -> str:
    """The arms of a group after their last round, beside those they are compared with."""
    mine = [arm.name for arm in ARMS if arm.group == group]
    if not any(map(table.last, mine)):
        return "Not run yet."
    to_base = [f"{MEASURES[measure][0]} to the base" for measure in ("kid", "look", "alignment", "error")]
    rows = [["", "seeds", "KID, round by round", *to_base, "core-seconds"]]
    for name in filter(table.last, [*BESIDE.get(group, ["spin"]), *mine]):
        last = table.last(name)
        rows.append([
            NAMED[name].title, seeds(table, name), by_round(table, name),
            *(difference(table, measure, name, last) for measure in ("kid", "look", "alignment", "error")),
            seconds(table, name, last),
        ])  # fmt: skip
    return markdown(rows)


def pairs(table: Table) -> str:
    """What sets arms and rounds apart, seed by seed."""
    measured = ("kid", "look", "alignment", "error")
    rows = [["", *(MEASURES[measure][0] for measure in measured)]]
    for title, arm, round_, other, other_round in PAIRS:
        differences = (table.difference(measure, arm, round_, other, other_round) for measure in measured)
        rows.append([title, *map(signed, differences, measured)])
    return markdown(rows)


def done(table: Table) -> str:
    """Which cells are there."""
    arms = [f"{arm.title}: {seeds(table, arm.name)} of {arm.seeds}" for arm in ARMS if table.last(arm.name)]
    absent = [arm.title for arm in ARMS if not table.last(arm.name)]
    text = f"Seeds that are there: {'; '.join(arms) or 'none'}."
    return text + (f" Not run: {'; '.join(absent)}." if absent else "")


def by_round(table: Table, name: str) -> str:
    """KID after every round that was measured."""
    return " · ".join(f"{k}: {number(found, 'kid')}" for k in table.rounds(name) if (found := table.estimate("kid", name, k)))


def seeds(table: Table, name: str) -> str:
    return str(len(table.seeds(name, table.last(name))) or "–")


def seconds(table: Table, name: str, round_: int) -> str:
    found = table.seconds(name, round_)
    return "–" if found is None else f"{found:.0f}"


def value(table: Table, measure: str, name: str, round_: int) -> str:
    """A measure without its interval, where it is there."""
    found = table.estimate(measure, name, round_)
    return number(found, measure) if found else "–"


def difference(table: Table, measure: str, name: str, round_: int) -> str:
    """An arm less the base."""
    return signed(table.difference(measure, name, round_, BASE, 0), measure)


def markdown(rows: list[list[str]]) -> str:
    """A table whose first row is its head."""
    head, *body = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])
