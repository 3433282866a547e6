"""What the plots of an evaluation share: lines that do not differ by colour alone, and an axis of tokens."""

import math
from collections.abc import Sequence

from results.plots import Axis, Scale, tick_text

LOG_FROM = 3.0
"""Longest over shortest from which on lengths are on a logarithmic axis."""
LEAST_GAP = 0.14
"""Between two ticks, as a share of the axis: what a text needs on a narrow page."""


def line_style(number: int) -> str:
    """Return the CSS classes of a contender's line: six colours, and dashes by which neighbours differ too.

    Args:
        number: Of the contender, from 0.
    """
    return f"c{number % 6} d{(number + number // 6) % 3}"


def token_axis(
    label: str, lengths: Sequence[float], *, ticks_at: Sequence[float] | None = None, may_log: bool = True
) -> Axis:
    """Return an axis of tokens, with as many ticks as have room.

    Args:
        label: What the tokens are.
        lengths: Tokens, above 0; at least one.
        ticks_at: Where ticks may stand; default: at the lengths.
        may_log: Whether it may be logarithmic.
    """
    low, high = min(lengths), max(lengths)
    if may_log and high / low >= LOG_FROM:
        scale = log_scale([*lengths])
    else:
        room = 0.05 * (high - low) or 0.5 * low
        scale = Scale(low - room, high + room)
    able = [place for place in (lengths if ticks_at is None else ticks_at) if scale.low <= place <= scale.high]
    ticks: list[float] = []
    for length in sorted({*able}, reverse=True):  # the longest is the one that a reader looks for
        if all(abs(scale.place(length) - scale.place(other)) >= LEAST_GAP for other in ticks):
            ticks.append(length)
    return Axis(label, scale, tuple((tick, tick_text(tick, digits=4)) for tick in reversed(ticks)))


def log_scale(values: Sequence[float]) -> Scale:
    """Return a logarithmic scale with a little room.

    Args:
        values: Above 0; two distinct ones at least.
    """
    low, high = min(values), max(values)
    room = (high / low) ** 0.04
    return Scale(low / room, high * room, is_log=True)


def window_mark(original_length: int | None, axis: Axis) -> list[tuple[float, str]]:
    """Return the vertical line at the original window, with its text; none outside the axis.

    Args:
        original_length: Tokens; None where it is not known.
        axis: Of tokens.
    """
    if original_length is None or not axis.scale.low <= original_length <= axis.scale.high:
        return []
    return [(float(original_length), f"original window, {original_length:,} tokens")]


def finite(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that can be drawn."""
    return [point for point in points if all(map(math.isfinite, point))]
