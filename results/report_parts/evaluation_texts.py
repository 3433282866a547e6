"""Perplexity of text by window length, and the loss by how much context the model saw, with the power law."""

import math
from collections.abc import Sequence

import numpy as np
import pandas as pd

from results.evaluation import BEYOND
from results.plots import Axis, Plot, Series, plot_html, scale_of
from results.report_parts.evaluation_plots import LOG_FROM, finite, line_style, log_scale, token_axis, window_mark
from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.markup import element, perplexity_text, section, short_text, table
from results.text_loss_tables import FITTED_FORM, MIN_BUCKET_TOKENS, by_context, perplexities, power_laws

FORMS = {
    "sliding": "sliding windows, every token scored once",
    "longlora": "LongLoRA's form, windows averaged whole",
    "temp-lora": "Temp-LoRA's form, perplexities of chunks averaged",
}
"""What the forms are called for a reader."""
NUM_CURVE_POINTS = 60


def texts_html(record: EvaluationRecord) -> str:
    """Return the plots and tables of text; nothing where no text was measured.

    Args:
        record: The evaluation.
    """
    if record.text_losses.empty:
        return ""
    frame = perplexities(record.text_losses)
    parts = [_by_length(record, frame[frame["form"] == form], str(form)) for form in dict.fromkeys(frame["form"])]
    note = "The forms are not the same figure, and none is to be compared with another." if len(parts) > 1 else ""
    told = element("p", note, classes="small") if note else ""
    return section("Perplexity of text", *parts, told, _by_context(record))


def _by_length(record: EvaluationRecord, frame: pd.DataFrame, form: str) -> str:
    columns = ("contender", "length", "perplexity")
    rows = zip(*(frame[column].tolist() for column in columns), strict=True)
    values = {(str(name), int(length)): float(perplexity) for name, length, perplexity in rows}
    lengths = sorted({length for _, length in values})
    name = FORMS.get(form, form)
    cells = [
        [one, *(_perplexity(values.get((one, length)), record.is_beyond(one, length)) for length in lengths)]
        for one in record.contenders
    ]
    header = ("contender", *(f"{length:,}" for length in lengths))
    counts = frame["num_texts"].tolist()
    texts = f"{min(counts)} to {max(counts)}" if min(counts) < max(counts) else f"{counts[0]}"
    shown = table(f"Perplexity by window in tokens: {name}; texts: {texts}", header, cells, classes="numbers")
    marked = any(record.is_beyond(*key) for key in values)
    shown += element("p", f"{BEYOND}: longer than the factors are for.", classes="small") if marked else ""
    drawn = {
        one: finite([(length, values.get((one, length), math.nan)) for length in lengths]) for one in record.contenders
    }
    if len(lengths) < 2 or not any(drawn.values()):
        return shown
    axis = token_axis("window, tokens", lengths)
    values_drawn = [value for points in drawn.values() for _, value in points]
    is_wide = max(values_drawn) / min(values_drawn) >= LOG_FROM
    plot = Plot(
        title=f"Perplexity by window, {name}",
        description="The numbers are in the table below.",
        x=axis,
        y=Axis.of("perplexity", log_scale(values_drawn) if is_wide else scale_of(values_drawn)),
        series=[
            Series(label=one, points=points, classes=line_style(number))
            for number, (one, points) in enumerate(drawn.items())
        ],
        marks=window_mark(record.original_length, axis),
    )
    return plot_html(plot) + shown


def _by_context(record: EvaluationRecord) -> str:
    """Return the loss by context at the longest window of the form that the power law is fitted to."""
    losses = record.text_losses[record.text_losses["form"] == FITTED_FORM]
    if losses.empty:
        return ""
    frame = by_context(losses)
    longest = int(frame["length"].max())
    frame = frame[(frame["length"] == longest) & (frame["num_tokens"] >= MIN_BUCKET_TOKENS)]
    if frame.empty:
        return ""
    laws = power_laws(losses)
    laws = laws[laws["length"] == longest]
    return _context_plot(record, frame, laws, longest) + _law_table(laws) + _context_table(record, frame, longest)


def _context_plot(record: EvaluationRecord, frame: pd.DataFrame, laws: pd.DataFrame, longest: int) -> str:
    points = {
        name: finite(list(zip(own["middle_context"].clip(lower=1.0).tolist(), own["loss"].tolist(), strict=True)))
        for name, own in ((name, frame[frame["contender"] == name]) for name in record.contenders)
    }
    measured = [point for own in points.values() for point in own]
    if len({context for context, _ in measured}) < 2:
        return ""
    powers = [float(2**number) for number in range(40)]
    axis = token_axis("tokens seen before the one predicted", [context for context, _ in measured], ticks_at=powers)
    series = [
        Series(label=name, points=own, classes=f"c{number % 6}") for number, (name, own) in enumerate(points.items())
    ]
    series += [
        Series(label="", points=_curve(law, points[name]), classes=f"c{number % 6} d1")
        for number, name in enumerate(record.contenders)
        for law in _fitted(laws, name)
        if points[name]
    ]
    has_law = bool((laws["reason"] == "").any())
    plot = Plot(
        title=f"Loss by context, in sliding windows of {longest:,} tokens{'; dashed: the fitted power law' * has_law}",
        description="The numbers are in the tables below.",
        x=axis,
        y=Axis.of("loss, nats per token", scale_of([loss for _, loss in measured], may_log=False)),
        series=series,
        marks=window_mark(record.original_length, axis),
    )
    return plot_html(plot)


def _fitted(laws: pd.DataFrame, name: str) -> list[tuple[float, float, float]]:
    """Return alpha, beta and gamma of a contender, in a list that is empty where there is no fit."""
    own = laws[(laws["contender"] == name) & (laws["reason"] == "")]
    return list(zip(own["alpha"].tolist(), own["beta"].tolist(), own["gamma"].tolist(), strict=True))


def _curve(law: tuple[float, float, float], points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    alpha, beta, gamma = law
    contexts = np.geomspace(points[0][0], points[-1][0], NUM_CURVE_POINTS)
    with np.errstate(over="ignore"):
        losses = np.power(alpha / contexts, beta) + gamma
    return list(zip(contexts.tolist(), losses.tolist(), strict=True))


def _law_table(laws: pd.DataFrame) -> str:
    is_fitted = laws["reason"] == ""
    rows = [
        [
            str(law["contender"]),
            *(_interval(*(float(law[f"{name}{end}"]) for end in ("", "_low", "_high"))) for name in _PARAMETERS),
            short_text(float(law["residual"])),
            str(law["num_points"]),
        ]
        for _, law in laws[is_fitted].iterrows()
    ]
    header = ("contender", "alpha, tokens", "beta", "gamma, nats", "residual", "points")
    caption = "Power law of context, L(c) = (alpha / c)^beta + gamma, with 95% intervals"
    shown = table(caption, header, rows, classes="numbers") if rows else ""
    # of an error message what it found, not what its user should do
    reasons = [f"{law['contender']}: {str(law['reason']).split('. ')[0]}" for _, law in laws[~is_fitted].iterrows()]
    if reasons:
        told = f"No power law could be fitted to the losses by context. {'; '.join(reasons)}."
        shown += element("p", told, classes="small")
    return shown


_PARAMETERS = ("alpha", "beta", "gamma")


def _context_table(record: EvaluationRecord, frame: pd.DataFrame, longest: int) -> str:
    buckets = sorted({*zip(frame["first_context"].tolist(), frame["last_context"].tolist(), strict=True)})
    columns = ("contender", "first_context", "last_context", "loss")
    rows = zip(*(frame[column].tolist() for column in columns), strict=True)
    losses = {(str(name), first, last): float(loss) for name, first, last, loss in rows}
    cells = [
        [name, *(_loss(losses.get((name, *bucket))) for bucket in buckets)] for name in record.contenders
    ]  # fmt: skip
    header = ("contender", *(f"{first:,}" if first == last else f"{first:,}-{last:,}" for first, last in buckets))
    few = f"those with fewer than {MIN_BUCKET_TOKENS} tokens scored are left out"
    caption = f"Loss by tokens seen, nats per token, in sliding windows of {longest:,} tokens; {few}"
    shown = table(caption, header, cells, classes="numbers")
    return f"<details>{element('summary', 'The loss by context as numbers')}{shown}</details>"


def _perplexity(value: float | None, is_beyond: bool) -> str:
    if value is None:
        return "-"
    return ("not finite" if math.isnan(value) else perplexity_text(value)) + BEYOND * is_beyond


def _loss(value: float | None) -> str:
    if value is None:
        return "-"
    return "not finite" if math.isnan(value) else f"{value:.4f}"


def _interval(value: float, low: float, high: float) -> str:
    return f"{short_text(value)} ({short_text(low)} to {short_text(high)})"
