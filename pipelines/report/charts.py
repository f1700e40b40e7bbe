"""Numbers to small SVG charts, as text for the inside of a page; colours and type come from the page's CSS.

Sizes are CSS pixels of a chart shown at its natural width, so that its labels stay as large as the text beside it.
Every chart carries a sentence that says what it shows.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 336, 168
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 58, 10, 22
_ROW = 20
_CHARACTER = 6.2  # width of one at the size the CSS gives labels


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a chart: its name, its CSS class (`train`, `held-out`), its points in order of x."""

    name: str
    css: str
    points: tuple[tuple[float, float], ...]


def line_chart(lines: Sequence[Line], *, title: str, x_name: str) -> Markup:
    """Lines over a common axis, each named at its end; an empty Markup where there is no point."""
    lines = [line for line in lines if line.points]
    if not lines:
        return Markup("")
    xs = [x for line in lines for x, _ in line.points]
    ys = [y for line in lines for _, y in line.points]
    x_ticks = _ticks(min(xs), max(xs), 4, whole=True)
    y_ticks = _ticks(min(ys), max(ys), 4)
    x_of = _scale(min(xs), max(xs), _LEFT, _WIDTH - _RIGHT)
    y_of = _scale(min(*ys, y_ticks[0]), max(*ys, y_ticks[-1]), _HEIGHT - _BOTTOM, _TOP)
    parts = _y_axis(y_ticks, y_of, _LEFT, _WIDTH - _RIGHT)
    parts += _x_axis([tick for tick in x_ticks if min(xs) <= tick <= max(xs)], x_of, x_name)
    ends = _spread([y_of(line.points[-1][1]) for line in lines], 13.0)
    for line, end in zip(lines, ends, strict=True):
        path = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        last_x, last_y = x_of(line.points[-1][0]), y_of(line.points[-1][1])
        parts.append(Markup('<polyline class="line {}" points="{}"/>').format(line.css, path))
        if len(line.points) <= 12:
            parts += [_dot(x_of(x), y_of(y), 2.2, line.css) for x, y in line.points[:-1]]
        parts.append(_dot(last_x, last_y, 3.2, line.css))
        parts.append(_text(last_x + 7, end + 4, line.name, f"label {line.css}"))
    told = "; ".join(f"{line.name} from {number(line.points[0][1])} to {number(line.points[-1][1])}" for line in lines)
    return _svg(parts, f"{title} over {x_name}: {told}")


def histogram(values: Sequence[float], *, title: str, unit: str) -> Markup:
    """Counts of `values` in bins of a round width, the median marked; an empty Markup where there is no value."""
    if not values:
        return Markup("")
    ticks = _ticks(min(values), max(values), 4)
    # Rice's rule: few values in few bins.
    fine = _ticks(min(values), max(values), round(2 * len(values) ** (1 / 3)))
    step = fine[1] - fine[0]
    first = math.floor(min(values) / step)
    count = max(1, math.floor(max(values) / step) - first + 1)
    bins = [0] * count
    for value in values:
        bins[min(count - 1, math.floor(value / step) - first)] += 1
    low, high = first * step, (first + count) * step
    right = _WIDTH - 12
    x_of = _scale(low, high, _LEFT, right)
    y_ticks = [tick for tick in _ticks(0, max(bins), 3, whole=True) if tick <= max(bins)]
    y_of = _scale(0, max(bins), _HEIGHT - _BOTTOM, _TOP + 12)
    parts = _y_axis(y_ticks, y_of, _LEFT, right)
    width = (right - _LEFT) / count
    for index, amount in enumerate(bins):
        if amount:
            # One pixel of air between neighbours.
            parts.append(
                Markup('<rect class="bar" x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}"/>').format(
                    _LEFT + index * width + 0.5, y_of(amount), max(1.0, width - 1), y_of(0) - y_of(amount)
                )
            )
    middle = sorted(values)[len(values) // 2] if len(values) % 2 else _mean_of_middle(values)
    x_middle = x_of(middle)
    parts.append(
        Markup('<line class="median" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(
            x_middle, _TOP + 4, _HEIGHT - _BOTTOM
        )
    )
    anchor = "end" if x_middle > (_LEFT + right) / 2 else "start"
    shift = -5 if anchor == "end" else 5
    parts.append(_text(x_middle + shift, _TOP + 8, f"median {number(middle)}", "label median-label", anchor))
    parts += _x_axis([tick for tick in ticks if low <= tick <= high], x_of, unit)
    told = (
        f"{title} of {len(values)}: from {number(min(values))} to {number(max(values))} {unit}, median {number(middle)}"
    )
    return _svg(parts, told)


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One row of an interval chart: its name, its CSS class, its value, and between what that lies."""

    name: str
    css: str
    value: float
    interval: tuple[float, float] | None = None


def interval_chart(
    marks: Sequence[Mark], *, title: str, show: Callable[[float], str], tick: Callable[[float], str]
) -> Markup:
    """A dot a row, its interval a line through it; an empty Markup where there is no row.

    `show` writes a value, `tick` one of the round numbers of the axis.
    """
    if not marks:
        return Markup("")
    ends = [end for mark in marks for end in (mark.value, *(mark.interval or ()))]
    ticks = _ticks(min(ends), max(ends), 2)
    left = 14 + 1.1 * _CHARACTER * max(len(mark.name) for mark in marks)
    right = _WIDTH - 14 - 1.1 * _CHARACTER * max(len(show(mark.value)) for mark in marks)
    bottom = _TOP + _ROW * len(marks)
    x_of = _scale(min(*ends, ticks[0]), max(*ends, ticks[-1]), left, right)
    parts: list[Markup] = []
    for place in ticks:
        x = x_of(place)
        parts.append(
            Markup('<line class="grid" x1="{0:.1f}" x2="{0:.1f}" y1="{1}" y2="{2}"/>').format(x, _TOP - 4, bottom)
        )
        parts.append(_text(x, bottom + 14, tick(place), "tick", "middle"))
    for row, mark in enumerate(marks):
        y = _TOP + _ROW * row + _ROW / 2
        parts.append(_text(left - 8, y + 4, mark.name, f"label {mark.css}", "end"))
        if mark.interval is not None:
            low, high = map(x_of, mark.interval)
            parts.append(
                Markup('<line class="reach {}" x1="{:.1f}" x2="{:.1f}" y1="{:.1f}" y2="{:.1f}"/>').format(
                    mark.css, low, high, y, y
                )
            )
        parts.append(_dot(x_of(mark.value), y, 3.6, mark.css))
        parts.append(_text(_WIDTH, y + 4, show(mark.value), f"label {mark.css}", "end"))
    told = "; ".join(f"{mark.name} {show(mark.value)}" for mark in marks)
    return _svg(parts, f"{title}: {told}", height=bottom + 20)


def stacked_bar(parts: Sequence[tuple[str, str, float]], *, title: str) -> Markup:
    """One horizontal bar of (name, CSS class, amount); the page prints the amounts beside it."""
    total = math.fsum(amount for *_, amount in parts)
    if total <= 0:
        return Markup("")
    shapes: list[Markup] = []
    start = 0.0
    for _name, css, amount in parts:
        share = 100 * amount / total
        if share > 0:
            shapes.append(
                Markup('<rect class="{}" x="{:.3f}" y="0" width="{:.3f}" height="10"/>').format(css, start, share)
            )
        start += share
    told = ", ".join(f"{name} {100 * amount / total:.0f} %" for name, _css, amount in parts)
    return Markup(
        '<svg class="stacked" viewBox="0 0 100 10" preserveAspectRatio="none" role="img" aria-label="{}">{}</svg>'
    ).format(f"{title}: {told}", Markup("").join(shapes))


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be avoided."""
    if value == 0:
        return "0"
    size = math.floor(math.log10(abs(value)))
    if size >= 4 or size < -5:
        return f"{value:,.0f}" if 4 <= size < 9 else f"{value:.1e}"
    text = f"{value:.{max(0, 2 - size)}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.replace("-", "\N{MINUS SIGN}")


def _mean_of_middle(values: Sequence[float]) -> float:
    ordered = sorted(values)
    half = len(ordered) // 2
    return (ordered[half - 1] + ordered[half]) / 2


def _ticks(low: float, high: float, about: int, *, whole: bool = False) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`, in steps of 1, 2 or 5 times a power of ten."""
    span = (high - low) or abs(low) or 1.0
    raw = span / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw * 0.999)
    if whole:
        step = max(1.0, round(step))
    start, stop = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(start, max(stop, start + 1) + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """A straight map of [low, high] onto [start, end]; a single value goes to the middle."""
    if high == low:
        return lambda _value: (start + end) / 2
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _spread(places: Sequence[float], apart: float) -> list[float]:
    """Places moved so that none is nearer than `apart` to the next: labels that would lie on each other."""
    order = sorted(range(len(places)), key=places.__getitem__)
    result = list(places)
    for lower, upper in pairwise(order):
        result[upper] = max(result[upper], result[lower] + apart)
    over = max(result, default=0.0) - (_HEIGHT - _BOTTOM)
    return [place - over for place in result] if over > 0 else result


def _y_axis(ticks: Sequence[float], y_of: Callable[[float], float], left: float, right: float) -> list[Markup]:
    parts = []
    for tick in ticks:
        y = y_of(tick)
        line = '<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>'
        parts.append(Markup(line).format(left, right, y, y))
        parts.append(_text(left - 7, y + 4, number(tick), "tick", "end"))
    return parts


def _x_axis(ticks: Sequence[float], x_of: Callable[[float], float], name: str) -> list[Markup]:
    parts: list[Markup] = []
    free_until = math.inf
    for tick in reversed(ticks):
        # The last one carries the unit; it may reach neither over the edge nor into its neighbour.
        text = f"{number(tick)} {name}" if tick == ticks[-1] else number(tick)
        half = len(text) * _CHARACTER / 2
        place, anchor, start = x_of(tick), "middle", x_of(tick) - half
        if place + half > _WIDTH:
            place, anchor, start = float(_WIDTH), "end", _WIDTH - 2 * half
        if parts and place + half > free_until:
            continue
        parts.append(_text(place, _HEIGHT - 5, text, "tick", anchor))
        free_until = start - _CHARACTER / 2
    return parts[::-1]


def _dot(x: float, y: float, radius: float, css: str) -> Markup:
    return Markup('<circle class="dot {}" cx="{:.1f}" cy="{:.1f}" r="{}"/>').format(css, x, y, radius)


def _text(x: float, y: float, text: str, css: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(css, x, y, anchor, text)


def _svg(parts: Sequence[Markup], told: str, *, height: float = _HEIGHT) -> Markup:
    opening = '<svg class="chart" viewBox="0 0 {} {}" width="{}" role="img" aria-label="{}">'
    head = Markup(opening).format(_WIDTH, height, _WIDTH, told)
    return head + Markup("").join(escape(part) for part in parts) + Markup("</svg>")
