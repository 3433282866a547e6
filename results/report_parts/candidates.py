"""Parallel coordinates of the searched candidates: what they were, and what they lost."""

import math
from typing import NamedTuple

import numpy as np

from results.plots import Scale, drawing, figure_html, line_path, scale_of
from results.report_parts.markup import counted, element, escaped, section, short_text
from results.report_parts.record import Candidate, RunRecord

NUM_FACTORS = 4
"""Pairs that have an axis."""
BEST_SHARE = 0.1
"""Part of the candidates that stand out."""


class _Coordinate(NamedTuple):
    """One axis."""

    name: str
    values: list[float]
    scale: Scale


def candidates_html(record: RunRecord, *, most_lines: int) -> str:
    """Return the plot; nothing where fewer than two searched candidates are known.

    Args:
        record: The run.
        most_lines: Candidates to draw at most: the best, and of the others evenly chosen ones.
    """
    known = [
        one
        for one in record.candidates
        if one.is_searched and one.values is not None and not one.is_dropped and 1 <= one.perplexity < math.inf
    ]
    if len(known) < 2:
        return ""
    ranked = sorted(known, key=lambda one: one.perplexity)
    num_best = min(max(1, round(BEST_SHARE * len(ranked))), most_lines)
    rest = ranked[num_best:]
    others = rest[:: max(1, math.ceil(len(rest) / max(1, most_lines - num_best)))]
    coordinates = _coordinates(ranked[:num_best] + others)
    lines = [_line(coordinates, place, is_best=place < num_best) for place in range(num_best + len(others))]
    title = "Searched candidates: what they were and what they lost"
    told = f"{counted(len(known), 'candidate')}; the best tenth stands out. {_range_words(coordinates)}"
    axes = "".join(
        line_path([(_across(number, coordinates), 0.0), (_across(number, coordinates), 1.0)], "axis")
        for number in range(len(coordinates))
    )
    texts = "".join(_texts(number, coordinates) for number in range(len(coordinates)))
    content = f'<div class="plot parallel">{drawing(title, told, "".join(reversed(lines)) + axes)}{texts}</div>'
    legend = (
        '<ul class="legend"><li><svg viewBox="0 0 28 10" aria-hidden="true"><path class="line win" d="M1 5H27"/></svg>'
        'the best tenth</li><li><svg viewBox="0 0 28 10" aria-hidden="true"><path class="line rest" d="M1 5H27"/></svg>'
        "the others</li></ul>"
    )
    told = "λ with a number: that frequency pair's factor. Loss: nats per token on search documents."
    return section("Candidates", figure_html(title, content + legend), element("p", told, classes="small"))


def _coordinates(candidates: list[Candidate]) -> list[_Coordinate]:
    """Return the axes: those of what varied, then the loss."""
    lists = np.array([one.values for one in candidates], dtype=np.float64)
    moved = np.flatnonzero(np.ptp(lists, axis=0) > 0)
    # evenly spread over the pairs that any candidate changed, the slowest among them
    chosen = (
        sorted({int(moved[round(place)]) for place in np.linspace(0, len(moved) - 1, NUM_FACTORS)})
        if len(moved)
        else []
    )
    dims = [math.nan if one.critical_dim is None else float(one.critical_dim) for one in candidates]
    named = [
        ("crit. dim.", dims),
        ("temp.", [one.attention_temperature for one in candidates]),
        *((f"λ{pair}", [float(value) for value in lists[:, pair]]) for pair in chosen),
    ]
    varied = [(name, values) for name, values in named if len({*values}) > 1 and not any(map(math.isnan, values))]
    losses = [math.log(one.perplexity) for one in candidates]
    return [_Coordinate(name, values, scale_of(values, may_log=name == "loss"))
            for name, values in [*varied, ("loss", [max(loss, 1e-9) for loss in losses])]]  # fmt: skip


def _across(number: int, coordinates: list[_Coordinate]) -> float:
    return (number + 0.5) / len(coordinates)


def _line(coordinates: list[_Coordinate], place: int, *, is_best: bool) -> str:
    points = [
        (_across(number, coordinates), 1 - one.scale.place(one.values[place])) for number, one in enumerate(coordinates)
    ]
    return line_path(points, f"line {'win thin' if is_best else 'rest'}")


def _texts(number: int, coordinates: list[_Coordinate]) -> str:
    left = f"left:{_across(number, coordinates):.2%}"
    one = coordinates[number]
    top = f"{escaped(one.name)}<br>{_end(max(one.values))}"
    return (
        f'<span class="tick t name" aria-hidden="true" style="{left}">{top}</span>'
        f'<span class="tick x" aria-hidden="true" style="{left}">{_end(min(one.values))}</span>'
    )


def _end(value: float) -> str:
    return short_text(value) if abs(value) >= 100 or abs(value) < 0.1 else f"{value:.4g}"


def _range_words(coordinates: list[_Coordinate]) -> str:
    return ", ".join(f"{one.name} from {_end(min(one.values))} to {_end(max(one.values))}" for one in coordinates) + "."
