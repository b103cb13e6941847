"""Line charts as plain SVG: no library, no network, readable wherever HTML is."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence

from data_prep.contract.html_page import escaped, number

WIDTH, HEIGHT = 460, 260

_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 14, 12, 40

_MOST_POINTS = 500


@dataclasses.dataclass(frozen=True, kw_only=True)
class Line:
    """One curve."""

    name: str
    """What the curve is of."""
    style: str
    """CSS class that colours it."""
    points: Sequence[tuple[float, float]]
    """(x, y) in order of x; those that are not finite are left out."""


def line_chart(lines: Sequence[Line], *, x_label: str, y_label: str) -> str:
    """Curves over one x axis; "nothing logged" where none has a point. Long curves are thinned to means."""
    finite = {line.name: _thin([p for p in line.points if all(map(math.isfinite, p))]) for line in lines}
    every = [point for points in finite.values() for point in points]
    if not every:
        return '<p class="nothing">nothing logged</p>'
    x_ticks, y_ticks = (ticks(*_range([point[axis] for point in every])) for axis in (0, 1))
    x = _scale(x_ticks, _LEFT, WIDTH - _RIGHT)
    y = _scale(y_ticks, HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escaped(y_label)} against {escaped(x_label)}">'
    ]
    for value in y_ticks:
        parts.extend(
            (
                f'<line class="grid" x1="{_LEFT}" x2="{WIDTH - _RIGHT}" y1="{y(value):.1f}" y2="{y(value):.1f}"/>',
                f'<text class="tick" x="{_LEFT - 6}" y="{y(value) + 4:.1f}" text-anchor="end">{number(value)}</text>',
            )
        )
    parts.extend(
        f'<text class="tick" x="{x(value):.1f}" y="{HEIGHT - _BOTTOM + 16}" text-anchor="middle">'
        f"{escaped(number(value))}</text>"
        for value in x_ticks
    )
    parts.append(f'<text class="label" x="{WIDTH / 2}" y="{HEIGHT - 6}" text-anchor="middle">{escaped(x_label)}</text>')
    for line in lines:
        places = [(round(x(px), 1), round(y(py), 1), number(px), number(py)) for px, py in finite[line.name]]
        if not places:
            continue
        path = " ".join(f"{px},{py}" for px, py, *_ in places)
        data = escaped(json.dumps(places))
        parts.extend(
            (
                f'<polyline class="curve {line.style}" points="{path}" data-name="{escaped(line.name)}" '
                f'data-at="{data}">',
                f"<title>{escaped(line.name)}</title></polyline>",
                f'<circle class="end {line.style}" cx="{places[-1][0]}" cy="{places[-1][1]}" r="2.5"/>',
            )
        )
    return "".join([*parts, "</svg>"])


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that enclose the range: multiples of 1, 2 or 5 times a power of ten."""
    rough = (high - low) / count
    magnitude = 10.0 ** math.floor(math.log10(rough))
    step = next(magnitude * factor for factor in (1, 2, 5, 10) if magnitude * factor >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    margin = abs(low) * 0.05 or 1.0
    return (low, high) if high > low else (low - margin, high + margin)


def _scale(ticks: Sequence[float], start: float, end: float) -> Callable[[float], float]:
    low, high = ticks[0], ticks[-1]
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _thin(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // _MOST_POINTS)
    if size <= 1:
        return points
    blocks = [points[start : start + size] for start in range(0, len(points), size)]
    means = [(sum(x for x, _ in block) / len(block), sum(y for _, y in block) / len(block)) for block in blocks]
    return [points[0], *means[1:-1], points[-1]]
