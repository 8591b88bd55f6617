"""The study's figures, PNG and SVG, from its results. Needs matplotlib: `pip install "spinlite[study]"`."""

from pathlib import Path
from typing import Any

from spinlite.errors import SpinliteError
from spinlite.study.arms import ARMS, FULL, GROUPS, NAMED
from spinlite.study.results import BASE, Table

COLOURS = {  # Okabe & Ito: told apart by the colour-blind too
    "sft": "#D55E00", "near": "#D55E00", "spin": "#0072B2", "near-spin": "#0072B2", "seppo": "#009E73", "sudo": "#CC79A7",
    "dpo": "#E69F00", "dro": "#56B4E9", "spin-anchored": "#56B4E9",
}  # fmt: skip
PANELS = (
    ("kid", "KID, to the base", "lower is better", 1.0),
    ("look", "looks like the pictures, %, to the base", "higher is better", 100.0),
    ("alignment", "alignment, to the base", "higher is better", 1.0),
    ("error", "held-out error × 1000, to the base", "lower is better", 1000.0),
)
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.titlelocation": "left", "axes.titlesize": 10,
    "axes.grid": True, "grid.alpha": 0.25, "svg.hashsalt": "spinlite", "svg.fonttype": "none", "figure.dpi": 120,
}  # fmt: skip
REGIMES = (  # what is said of the regime, SFT's arm, SPIN's arm
    ("16 pictures", "sft-data-16", "spin-data-16"),
    ("48 pictures", "sft-data-48", "spin-data-48"),
    ("128 pictures", "sft", "spin"),
    ("after much SFT", "near-sft", "near-spin"),
)


def draw(table: Table, folder: Path) -> None:
    """Every figure for which there are results. Raises SpinliteError where matplotlib is missing."""
    try:
        import matplotlib as mpl
    except ModuleNotFoundError:
        raise SpinliteError("the figures need matplotlib", fix='pip install "spinlite[study]"') from None
    folder.mkdir(parents=True, exist_ok=True)
    with mpl.rc_context(STYLE):
        for made in (rounds, arms, beta, regimes):
            if (figure := made(table)) is not None:
                figure.savefig(folder / f"{made.__name__}.png")
                figure.savefig(folder / f"{made.__name__}.svg", metadata={"Date": None})


def colour(name: str) -> str:
    """An arm's, by its method."""
    return COLOURS.get(name, COLOURS[name.split("-")[0]])


def rounds(table: Table) -> Any:
    """The arms of many rounds, or else the headline arms, over the work they were given: four measures."""
    of_group = {group: [a.name for a in ARMS if a.group == group and table.rounds(a.name)] for group in ("rounds", "headline")}
    names = of_group["rounds"] or of_group["headline"]
    if not names:
        return None
    end = max(map(table.last, names))
    figure, axes = _figure(9, 6.4, 2, 2)
    for axis, (measure, title, better, scale) in zip(axes.flat, PANELS, strict=True):
        for i, name in enumerate(names):
            found = [(k, table.difference(measure, name, k, BASE, 0)) for k in table.rounds(name)]
            known = [(k + 0.1 * (i - (len(names) - 1) / 2), e) for k, e in found if e]
            x, y = [0.0, *(k for k, _ in known)], [0.0, *(scale * e.value for _, e in known)]
            axis.plot(x, y, color=colour(name), marker="o", markersize=4, label=NAMED[name].title)
            for k, e in known:
                axis.plot([k, k], [scale * e.low, scale * e.high], color=colour(name), alpha=0.45, linewidth=2)
        _zero(axis)
        axis.set_title(f"{title}  ({better})")
        axis.set_xticks(range(end + 1), ["base", *map(str, range(1, end + 1))])
    axes.flat[1].legend(frameon=False, fontsize=8, loc="lower right")
    title = f"Over rounds, at equal policy passes, {FULL.passes} a round. Bars: 95 %, paired over captions and seeds"
    figure.suptitle(title, x=0.01, ha="left")
    return figure


def arms(table: Table) -> Any:
    """Every arm's KID to the base after its last round."""
    known = [arm for arm in ARMS if table.last(arm.name)]
    if not known:
        return None
    figure, (axis,) = _figure(8, 1.2 + 0.24 * (len(known) + len({arm.group for arm in known})), 1, 1)
    y, ticks, labels, group = 0.0, [], [], ""
    for arm in known:
        if arm.group != group:
            group, y = arm.group, y + 1
            axis.text(0.005, y, GROUPS[group], transform=axis.get_yaxis_transform(), va="center", fontsize=8, color="#57606a")
        y += 1
        _interval(axis, table.difference("kid", arm.name, table.last(arm.name), BASE, 0), y, colour(arm.name))
        ticks.append(y)
        labels.append(f"{arm.title} ({len(table.seeds(arm.name, table.last(arm.name)))})")
    axis.set_yticks(ticks, labels)
    axis.set_ylim(y + 0.8, 0.2)
    axis.axvline(0, color="#57606a", linewidth=1)
    axis.set_title("KID to the base after the last round: left is better (seeds in brackets)")
    return figure


def beta(table: Table) -> Any:
    """SPIN's KID to the base over β, a line a round."""
    values = {float(arm.method["beta"]): arm.name for arm in ARMS if arm.group == "beta" or arm.name == "spin"}
    known = {b: name for b, name in sorted(values.items()) if table.last(name)}
    if len(known) < 2:
        return None
    figure, (axis,) = _figure(6.4, 3.8, 1, 1)
    for k in (1, 2, 3):
        found = [(b, table.difference("kid", name, k, BASE, 0)) for b, name in known.items()]
        points = [(b * 1.04 ** (k - 2), e) for b, e in found if e]
        shade = {1: "#9ecae1", 2: "#4292c6", 3: "#084594"}[k]
        axis.plot([b for b, _ in points], [e.value for _, e in points], color=shade, marker="o", label=f"round {k}")
        for b, e in points:
            axis.plot([b, b], [e.low, e.high], color=shade, alpha=0.5, linewidth=2)
    axis.set_xscale("log")
    axis.set_xticks(list(known), [f"{b:.0f}" for b in known], minor=False)
    axis.minorticks_off()
    axis.set_xlabel("β")
    _zero(axis)
    axis.legend(frameon=False)
    axis.set_title("SPIN: KID to the base over β (lower is better)")
    return figure


def regimes(table: Table) -> Any:
    """SFT and SPIN side by side where pictures, work and start differ: KID to what each started from."""
    known = [row for row in REGIMES if table.last(row[1]) and table.last(row[2])]
    if len(known) < 2:
        return None
    figure, (axis,) = _figure(7, 1.1 + 0.55 * len(known), 1, 1)
    for i, (_, *names) in enumerate(known):
        for j, name in enumerate(names):
            start = NAMED[name].start
            against = (start, table.last(start)) if start else (BASE, 0)
            found = table.difference("kid", name, table.last(name), *against)
            _interval(axis, found, i + 0.24 * (j - 0.5), colour(("sft", "spin")[j]), ("SFT", "SPIN")[j] if i == 0 else None)
    axis.set_yticks(range(len(known)), [row[0] for row in known])
    axis.set_ylim(len(known) - 0.5, -0.5)
    axis.axvline(0, color="#57606a", linewidth=1)
    axis.legend(frameon=False, loc="best")
    axis.set_title("KID to where it started: left is better")
    return figure


def _figure(width: float, height: float, rows: int, columns: int) -> tuple[Any, Any]:
    """A figure, and its axes as an array or, where there is one row, a list."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    return figure, axes if rows > 1 else list(axes.flat)


def _interval(axis: Any, found: Any, y: float, shade: str, label: str | None = None) -> None:
    if found:
        axis.plot([found.low, found.high], [y, y], color=shade, linewidth=2, alpha=0.6)
        axis.plot([found.value], [y], color=shade, marker="o", markersize=5, linestyle="", label=label)


def _zero(axis: Any) -> None:
    axis.axhline(0, color="#57606a", linewidth=1)
