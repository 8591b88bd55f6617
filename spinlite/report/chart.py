"""A line chart as SVG: small, readable without a script, in the colours of the page around it."""

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from spinlite.report.curves import Point

WIDTH, HEIGHT, LEFT, BELOW = 460, 200, 56, 24  # px
COLOURS = ("#2f8fd0", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")  # Okabe and Ito: apart for the colour-blind too


def chart(title: str, lines: Sequence[tuple[Sequence[Point], float | None]]) -> str:
    """Lines (points, base) -> an <svg>. A base is a dashed line. Line i has COLOURS[i]."""
    xs = [x for points, _ in lines for x, _ in points]
    ys = [y for points, base in lines for y in [*(y for _, y in points), *([] if base is None else [base])]]
    left, right = math.floor(min(xs)), max(math.ceil(max(xs)), math.floor(min(xs)) + 1)
    ticks = _ticks(min(ys), max(ys))

    def place(x: float, y: float) -> tuple[float, float]:
        share = (y - ticks[0]) / (ticks[-1] - ticks[0])
        return LEFT + (x - left) / (right - left) * (WIDTH - LEFT - 8), HEIGHT - BELOW - share * (HEIGHT - BELOW - 8)

    parts = [f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">']
    for y in ticks:
        _, at = place(left, y)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - 8}" y1="{at:.1f}" y2="{at:.1f}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{y:.3g}</text>')
    for x in range(left, right + 1, -(-(right - left) // 10)):
        parts.append(f'<text x="{place(x, ticks[0])[0]:.1f}" y="{HEIGHT - 6}" text-anchor="middle">{x}</text>')
    for i, (points, base) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        if base is not None:
            (x1, y1), (x2, _) = place(left, base), place(right, base)
            line = f'x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y1:.1f}"'
            parts.append(f'<line {line} stroke="{colour}" stroke-dasharray="5 4"/>')
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
        if len(points) <= 30:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.6" fill="{colour}"/>' for x, y in (place(*p) for p in points)]
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> list[float]:
    """Four to seven round numbers from below `low` to above `high`."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(times for times in (1, 2, 5, 10) if span / (times * step) <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [i * step for i in range(first, max(last, first + 1) + 1)]
