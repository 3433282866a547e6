"""The factors of every method on one plot, and as numbers."""

import math
from typing import Protocol

from results.plots import Axis, Plot, Scale, Series, plot_html, scale_of, tick_text
from results.report_parts.markup import element, section, table
from results.report_parts.record import Candidate, Shown
from rope.critical_dimension import theoretical_critical_dim
from rope.factors import RescaleFactors
from rope.frequencies import periods

MOST_TICKS = 6


class Curves(Protocol):
    """What factor curves are drawn of: a search or an evaluation."""

    @property
    def one_per_method(self) -> tuple[Shown, ...]:
        """Methods in the order of the legend."""
        ...

    @property
    def factors(self) -> RescaleFactors | None:
        """Factors of the model, for its geometry; None where none are known."""
        ...


def factor_curves_html(record: Curves) -> str:
    """Return the plot of index against lambda, and a table of the numbers; nothing where no factors are known."""
    curves = [
        (one.label, one.candidate, style(number, is_winner=one.is_winner))
        for number, one in enumerate(record.one_per_method)
        if one.candidate is not None and one.candidate.values is not None
    ]
    if not curves:
        return ""
    num_pairs = max(len(candidate.values or ()) for _, candidate, _ in curves)
    across = Scale(-0.02 * num_pairs, num_pairs - 1 + 0.02 * num_pairs)
    pairs = range(0, num_pairs, max(1, math.ceil(num_pairs / MOST_TICKS)))
    values = [value for _, candidate, _ in curves for value in candidate.values or ()]
    plot = Plot(
        title="Rescale factors by frequency pair",
        description=f"One curve per method: {', '.join(label for label, _, _ in curves)}. The numbers are below.",
        x=Axis("frequency pair, fast to slow", across, tuple((float(pair), str(pair)) for pair in pairs)),
        y=Axis.of("rescale factor λ", scale_of(values)),
        top=_period_axis(record, across, pairs),
        series=[
            Series(label=label, points=list(enumerate(candidate.values or ())), classes=classes)
            for label, candidate, classes in curves
        ],
        marks=_marks(record, [candidate for _, candidate, _ in curves]),
    )
    return section("Factors", plot_html(plot), _numbers([(label, candidate) for label, candidate, _ in curves]))


def style(number: int, *, is_winner: bool) -> str:
    """Return the CSS classes of a method's line: the winner's own, else one of six colours and three dashes."""
    return "win" if is_winner else f"c{number % 6} d{number // 6 % 3}"


def _period_axis(record: Curves, scale: Scale, pairs: range) -> Axis | None:
    factors = record.factors
    if factors is None:
        return None
    tokens = periods(factors.rotary_dim, factors.base)
    ticks = tuple((float(pair), tick_text(float(tokens[pair]))) for pair in pairs if pair < len(tokens))
    return Axis("period of the pair in the original model, tokens", scale, ticks)


def _marks(record: Curves, candidates: list[Candidate]) -> list[tuple[float, str]]:
    """Return the critical dimensions with the methods that have them, and the theoretical one."""
    named: dict[int, list[str]] = {}
    for candidate in candidates:
        if candidate.critical_dim is not None:
            named.setdefault(candidate.critical_dim, []).append(candidate.method)
    if (factors := record.factors) is not None:
        theory = theoretical_critical_dim(factors.rotary_dim, factors.base, factors.original_length)
        named.setdefault(theory, []).append("theory")
    return [(float(pair), f"critical dimension {pair}: {', '.join(names)}") for pair, names in sorted(named.items())]


def _numbers(curves: list[tuple[str, Candidate]]) -> str:
    num_pairs = max(len(candidate.values or ()) for _, candidate in curves)
    rows = [
        [str(pair), *(_value(candidate, pair) for _, candidate in curves)]
        for pair in range(num_pairs)
    ]  # fmt: skip
    shown = table("Rescale factors", ("pair", *(label for label, _ in curves)), rows, classes="numbers")
    return f"<details>{element('summary', 'The factors as numbers')}{shown}</details>"


def _value(candidate: Candidate, pair: int) -> str:
    values = candidate.values or ()
    return f"{values[pair]:.6g}" if pair < len(values) else "-"
