"""RULER's average by length, and what RULER says of a model at all lengths; the effective window of passkeys."""

import math
from collections.abc import Sequence

from needles.passkey import MIN_SUCCESS
from needles.ruler import TASKS, THRESHOLD
from results.answer_tables import Baseline, RulerFigures, effective_windows, ruler_baseline, ruler_figures
from results.evaluation import BEYOND
from results.plots import Axis, Plot, Scale, Series, plot_html
from results.report_parts.evaluation_plots import line_style, token_axis, window_mark
from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.evaluation_scores import percent_text, window_scores_of
from results.report_parts.markup import element, section, table

PERCENT = Axis("percent", Scale(-3.0, 103.0), tuple((float(tick), str(tick)) for tick in range(0, 101, 20)))


def ruler_html(record: EvaluationRecord) -> str:
    """Return RULER's average by length as lines and as a table; nothing where no task of RULER was measured.

    Args:
        record: The evaluation.
    """
    if not set(record.scores["task"]) & set(TASKS):
        return ""
    threshold, window = _threshold(record), record.original_length
    baseline = None
    if window is not None:
        baseline = ruler_baseline(record.scores, original_length=window, with_short=record.with_short)
    by_name = {one.contender: one for one in ruler_figures(record.scores, threshold=threshold, baseline=baseline)}
    figures = [by_name[name] for name in record.contenders if name in by_name]
    if not figures:
        return ""
    lengths = sorted({length for one in figures for length in one.averages})
    plot = _lines(record, figures, lengths, threshold) if len(lengths) > 1 else ""
    shown = _table(record, figures, lengths, threshold, baseline)
    return section("RULER", plot, shown, element("p", _caption(figures, baseline), classes="small"))


def window_html(record: EvaluationRecord) -> str:
    """Return the share of passkeys found at each length, and k_max; nothing where that task was not measured.

    Args:
        record: The evaluation.
    """
    scores = window_scores_of(record)
    if not scores.tasks:
        return ""
    (task,) = scores.tasks
    windows = {one.contender: one for one in effective_windows(record.scores)}
    series = [
        Series(
            label=name,
            points=[(length, scores.percent.get((task, name, length), math.nan)) for length in scores.lengths],
            classes=line_style(number),
        )
        for number, name in enumerate(record.contenders)
    ]
    rows = [
        [
            name,
            f"{windows[name].window:,}" if windows[name].window else f"below {windows[name].lengths[0]:,}",
            f"{windows[name].num_samples:,}",
        ]
        for name in record.contenders
        if name in windows
    ]
    axis = token_axis("length, tokens", scores.lengths, may_log=False)  # they are evenly spaced
    plot = Plot(
        title="Passkeys found at depth 0, by length",
        description="The effective windows are in the table below.",
        x=axis,
        y=Axis("passkeys found, percent", PERCENT.scale, PERCENT.ticks),
        series=series,
        marks=window_mark(record.original_length, axis),
    )
    told = (
        f"k_max: the longest length up to which at least {MIN_SUCCESS:.0%} of the passkeys are found, at it and at "
        "every shorter one (Position Interpolation, arXiv:2306.15595). Samples: at each length."
    )
    shown = table("Effective window", ("contender", "k_max, tokens", "samples"), rows, classes="numbers")
    return section("Passkey", plot_html(plot), shown, element("p", told, classes="small"))


def _threshold(record: EvaluationRecord) -> float:
    """Return what counts as effective, percent: the evaluation's own setting, else RULER's."""
    given = record.config.get("effective_threshold")
    return float(given) if isinstance(given, int | float) else THRESHOLD


def _lines(record: EvaluationRecord, figures: Sequence[RulerFigures], lengths: Sequence[int], threshold: float) -> str:
    axis = token_axis("length, tokens", lengths)
    place = {name: number for number, name in enumerate(record.contenders)}
    series = [
        Series(
            label=one.contender,
            points=[(length, average.score) for length, average in one.averages.items()],
            classes=line_style(place[one.contender]),
        )
        for one in figures
    ]
    ends = [(axis.scale.low, threshold), (axis.scale.high, threshold)]
    series.append(Series(label=f"threshold of an effective length, {threshold:g}%", points=ends, classes="mark"))
    num_measured = len({task for one in figures for average in one.averages.values() for task in average.measured})
    plot = Plot(
        title=f"RULER's average by length over {num_measured} of its {len(TASKS)} tasks",
        description="The numbers are in the table below.",
        x=axis,
        y=Axis("mean score, percent", PERCENT.scale, PERCENT.ticks),
        series=series,
        marks=window_mark(record.original_length, axis),
    )
    return plot_html(plot)


def _table(
    record: EvaluationRecord,
    figures: Sequence[RulerFigures],
    lengths: Sequence[int],
    threshold: float,
    baseline: Baseline | None,
) -> str:
    header = ["contender", *(f"{length:,}" for length in lengths), "mean", "wAvg (inc)", "wAvg (dec)"]
    header += [f"effective, {threshold:g}%"]
    header += [f"effective, {baseline.score:.1f}%"] if baseline else []
    rows = []
    for one in figures:
        averages = {length: one.averages.get(length) for length in lengths}
        cells = [
            percent_text(None if average is None else average.score) + BEYOND * record.is_beyond(one.contender, length)
            for length, average in averages.items()
        ]
        cells += [*map(percent_text, one.over_lengths), _length(one.effective_length)]
        cells += [_length(one.own_effective_length)] if baseline else []
        rows.append([one.contender, *cells])
    caption = "RULER's average by length in tokens, percent, and the effective length"
    return table(caption, header, rows, classes="numbers")


def _caption(figures: Sequence[RulerFigures], baseline: Baseline | None) -> str:
    """Return what the averages are over; an average over fewer tasks than the others is told by name."""
    left_out = {
        (one.contender, length): average.left_out for one in figures for length, average in one.averages.items()
    }
    everywhere = [task for task in TASKS if all(task in names for names in left_out.values())]
    measured = [task for task in TASKS if task not in everywhere]
    told = f"Mean of {len(measured)} of RULER's {len(TASKS)} tasks{': ' if measured else ''}{', '.join(measured)}."
    if everywhere:
        told += f" Not measured at every length, and in no average: {', '.join(everywhere)}."
    for (contender, length), names in left_out.items():
        further = [name for name in names if name not in everywhere]
        if further:
            told += f" {contender} at {length:,} is without {', '.join(further)} too, so that it is no comparison."
    told += (
        " wAvg: lengths weighted 1, 2, 3, .. from the shortest on (inc), or from the longest (dec). Effective: the "
        "longest length whose average reaches the threshold"
    )
    told += f"; the second is what {baseline.contender} scores at {baseline.length:,} tokens." if baseline else "."
    return told


def _length(value: int | None) -> str:
    return "none" if value is None else f"{value:,}"
