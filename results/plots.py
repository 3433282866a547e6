"""Plots as HTML: lines in an SVG that fills any width, and texts beside it that keep their size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from results.report_parts.markup import element, escaped, short_text

UNITS = 1000
"""Width and height of the drawing; it is stretched to the page."""
WIDE = 20.0
"""Largest value over smallest from which on an axis is logarithmic."""


class Scale(NamedTuple):
    """From values to places along an axis, 0 at its start and 1 at its end."""

    low: float
    """Value at the start."""
    high: float
    """Value at the end; above low."""
    is_log: bool = False
    """Whether equal steps are equal factors; then low is above 0."""

    def place(self, value: float) -> float:
        """Return where a value lies; one outside lies at the nearer end."""
        low, high, at = self.low, self.high, min(max(value, self.low), self.high)
        if self.is_log:
            low, high, at = math.log(low), math.log(high), math.log(at)
        return (at - low) / (high - low)

    def ticks(self, most: int = 6) -> list[float]:
        """Return round values inside, as many as fit.

        Example:
            >>> Scale(0.7, 4.8).ticks()
            [1.0, 2.0, 3.0, 4.0]
        """
        steps = _log_steps(self) if self.is_log else _linear_steps(self)
        for ticks in steps:
            if len(ticks) <= most:
                return ticks
        return []


def scale_of(values: Sequence[float], *, may_log: bool = True) -> Scale:
    """Return a scale that holds the finite values with a little room; logarithmic where they differ much.

    Args:
        values: Anything; NaN and infinity are passed over.
        may_log: Whether it may be logarithmic.
    """
    finite = [value for value in values if math.isfinite(value)] or [0.0, 1.0]
    low, high = min(finite), max(finite)
    if may_log and low > 0 and high / low > WIDE:
        room = (high / low) ** 0.03
        return Scale(low / room, high * room, is_log=True)
    room = 0.04 * (high - low) or 0.5 * abs(high) or 0.5
    return Scale(low - room, high + room)


class Axis(NamedTuple):
    """An axis: what it counts, and where texts stand."""

    label: str
    """Quantity and unit."""
    scale: Scale
    """Places of values."""
    ticks: tuple[tuple[float, str], ...]
    """Values with their texts."""

    @classmethod
    def of(cls, label: str, scale: Scale) -> "Axis":
        """Return an axis with round ticks."""
        return cls(label, scale, tuple((tick, tick_text(tick, digits=6)) for tick in scale.ticks()))


@dataclass(frozen=True, kw_only=True)
class Series:
    """Points of one kind, joined by a line or not."""

    label: str
    """Name in the legend; empty for none."""
    points: Sequence[tuple[float, float]]
    """In the units of the axes."""
    classes: str
    """CSS classes, which say colour and width."""
    is_joined: bool = True
    """Whether a line goes through the points; else each is a dot."""


@dataclass(frozen=True, kw_only=True)
class Plot:
    """A plot with its axes, and what it shows in words."""

    title: str
    """What it shows, in a line."""
    description: str
    """What a reader who cannot see it should know."""
    x: Axis
    """Along the bottom."""
    y: Axis
    """Along the left."""
    series: Sequence[Series]
    """The first lies on top."""
    top: Axis | None = None
    """A second axis along the top, on the scale of x."""
    marks: Sequence[tuple[float, str]] = ()
    """Vertical lines with their texts for the legend."""


def plot_html(plot: Plot) -> str:
    """Return a plot as a figure with a legend; every text in it is escaped."""
    marks = [_path([_point(plot, at, plot.y.scale.low), _point(plot, at, plot.y.scale.high)], "mark", name)
             for at, name in plot.marks]  # fmt: skip
    drawn = [_drawn(plot, series) for series in reversed(plot.series)]
    grid = [_grid_line(plot.x.scale.place(value), True) for value, _ in plot.x.ticks]
    grid += [_grid_line(plot.y.scale.place(value), False) for value, _ in plot.y.ticks]
    texts = [_tick("x", plot.x.scale.place(value), text) for value, text in plot.x.ticks]
    texts += [_tick("y", 1 - plot.y.scale.place(value), text) for value, text in plot.y.ticks]
    if plot.top is not None:
        texts += [_tick("t", plot.top.scale.place(value), text) for value, text in plot.top.ticks]
    top = "" if plot.top is None else element("div", plot.top.label, classes="top-label")
    return figure_html(
        plot.title,
        f"{element('div', plot.y.label, classes='y-label')}{top}"
        f'<div class="plot{" has-top" if plot.top else ""}">'
        f"{drawing(plot.title, plot.description, ''.join([*grid, *marks, *drawn]))}{''.join(texts)}</div>"
        f"{element('div', plot.x.label, classes='x-label')}{_legend(plot)}",
    )


def figure_html(title: str, content: str) -> str:
    """Return a figure with its caption on top."""
    return f"<figure>{element('figcaption', title)}{content}</figure>"


def drawing(title: str, description: str, content: str) -> str:
    """Return an SVG of `UNITS` by `UNITS` that is stretched to its place, with words for who cannot see it."""
    return (
        f'<svg viewBox="0 0 {UNITS} {UNITS}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escaped(f"{title}. {description}")}">{content}</svg>'
    )


def line_path(places: Sequence[tuple[float, float]], classes: str, title: str = "") -> str:
    """Return a line through places, each 0..1 from the left and from the top."""
    return _path([f"{x * UNITS:.0f} {y * UNITS:.0f}" for x, y in places], classes, title)


def tick_text(value: float, *, digits: int = 3) -> str:
    """Return a tick's text.

    Args:
        value: In the unit of its axis.
        digits: Of a number below ten thousand; round ones show fewer.

    Example:
        >>> tick_text(65536.0), tick_text(0.25), tick_text(2_000_000.0)
        ('65.5k', '0.25', '2M')
    """
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if 1e12 > abs(value) >= limit:
            divisor = 1e3 if unit == "k" else limit
            return f"{value / divisor:.{digits}g}{unit}"
    return short_text(value) if digits == 3 else f"{value:.{digits}g}"


def _linear_steps(scale: Scale) -> list[list[float]]:
    span = scale.high - scale.low
    power = 10.0 ** (math.floor(math.log10(span)) - 1)
    found = []
    for step in (power * factor for factor in (1, 2, 5, 10, 20, 50)):
        first, last = math.ceil(scale.low / step), math.floor(scale.high / step)
        found.append([float(f"{number * step:.12g}") for number in range(first, last + 1)])
    return found


def _log_steps(scale: Scale) -> list[list[float]]:
    exponents = range(math.floor(math.log10(scale.low)), math.ceil(math.log10(scale.high)) + 1)
    found = []
    for factors, every in (((1, 2, 5), 1), ((1, 3), 1), ((1,), 1), ((1,), 2), ((1,), 3), ((1,), 6)):
        ticks = [float(f"{factor}e{exponent}") for exponent in exponents if exponent % every == 0 for factor in factors]
        found.append([tick for tick in ticks if scale.low <= tick <= scale.high])
    return found


def _point(plot: Plot, x: float, y: float) -> str:
    return f"{plot.x.scale.place(x) * UNITS:.0f} {(1 - plot.y.scale.place(y)) * UNITS:.0f}"


def _drawn(plot: Plot, series: Series) -> str:
    points = [_point(plot, x, y) for x, y in series.points if math.isfinite(x) and math.isfinite(y)]
    if not points:
        return ""
    if series.is_joined:
        return _path(points, f"line {series.classes}", series.label)
    # a line of no length has round ends: a dot that is not stretched with the drawing
    dots = "".join(f"M{point}h0" for point in dict.fromkeys(points))
    return f'<path class="dots {series.classes}" d="{dots}"/>'


def _path(points: Sequence[str], classes: str, title: str) -> str:
    told = element("title", title) if title else ""
    return f'<path class="{classes}" d="M{"L".join(points)}">{told}</path>'


def _grid_line(place: float, is_vertical: bool) -> str:
    at = place * UNITS if is_vertical else (1 - place) * UNITS
    return f'<path class="grid" d="{f"M{at:.0f} 0V{UNITS}" if is_vertical else f"M0 {at:.0f}H{UNITS}"}"/>'


def _tick(kind: str, place: float, text: str) -> str:
    side = "top" if kind == "y" else "left"
    return f'<span class="tick {kind}" aria-hidden="true" style="{side}:{place:.2%}">{escaped(text)}</span>'


def _legend(plot: Plot) -> str:
    entries = [
        (f"{'line' if series.is_joined else 'dots'} {series.classes}", series.label)
        for series in plot.series
        if series.label
    ] + [("mark", name) for _, name in plot.marks]
    items = (
        f'<li><svg viewBox="0 0 28 10" aria-hidden="true"><path class="{classes}" '
        f'd="{"M14 5h0" if classes.startswith("dots") else "M1 5H27"}"/></svg>{escaped(name)}</li>'
        for classes, name in entries
    )
    return f'<ul class="legend">{"".join(items)}</ul>'
