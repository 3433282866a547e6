"""A fine-tuning in a report: what was measured before and after, and the loss of each kind of pack."""

import pandas as pd

from results.plots import Axis, Plot, Series, plot_html, scale_of
from results.report_parts.markup import counted, definitions, element, section, table
from results.report_parts.origins import accelerator_hours, duration
from results.report_parts.tuning_record import TuningRecord
from results.tuning_outcome import findings, outcome_rows

_CLASSES = {"long": "win", "short": "c1 d1"}


def tuning_state_html(record: TuningRecord) -> str:
    """Return what a reader must know first: that the fine-tuning is not finished."""
    if record.is_finished:
        return ""
    state = "goes on" if record.is_alive else "was stopped or killed"
    return element("p", f"Unfinished: it {state}; the same command takes it up.", classes="banner")


def tuning_headline_html(record: TuningRecord) -> str:
    """Return what the fine-tuning did, in a sentence and a table; nothing where it is not finished."""
    if record.outcome is None:
        return ""
    first, *others = tuning_in_words(record)
    told = element("p", first, classes="gain") + "".join(element("p", other, classes="small") for other in others)
    header = ("measured on held-out text", "before", "after", "change")
    rows = [list(row) for row in outcome_rows(record.outcome)]
    return section("Result", told, table("Before and after, on the same documents; lower is better", header, rows))


def tuning_in_words(record: TuningRecord) -> list[str]:
    """Return what the fine-tuning did, a sentence each; that there is no outcome yet where there is none."""
    if record.outcome is None:
        return [f"{counted(_num_steps(record.log), 'step')}, not measured yet."]
    return findings(record.outcome)


def window_losses_html(record: TuningRecord) -> str:
    """Return the plot of the training loss by kind of window, and what was trained on; nothing without a step."""
    if record.log.empty:
        return ""
    series, ends = [], []
    for window in ("long", "short"):
        rows = record.log[record.log["window"] == window]
        points = [
            (float(step), float(loss))
            for step, loss in zip(rows["step"], rows["sum_nll"] / rows["num_tokens"], strict=True)
        ]
        if points:
            series.append(Series(label=f"{window} packs", points=points, classes=_CLASSES[window]))
            ends.append(f"{window} packs from {points[0][1]:.4g} to {points[-1][1]:.4g}")
    steps = [point[0] for one in series for point in one.points]
    losses = [point[1] for one in series for point in one.points]
    plot = Plot(
        title="Training loss by kind of window",
        description=f"Nats per token: {', '.join(ends)}.",
        x=Axis.of("step", scale_of(steps, may_log=False)),
        y=Axis.of("loss of the step, nats per token", scale_of(losses)),
        series=series,
    )
    return section("Training", plot_html(plot), definitions(_facts(record)))


def _facts(record: TuningRecord) -> list[tuple[str, str]]:
    log = record.log
    tokens = log.groupby("window")["num_tokens"].sum()
    seconds = float(log.drop_duplicates("step")["seconds"].sum())
    scored = int(tokens.sum())
    return [
        ("steps", f"{_num_steps(log):,}"),
        *((f"tokens scored in {window} packs", f"{int(num):,}, {num / scored:.1%}") for window, num in tokens.items()),
        ("largest learning rate", f"{float(log['learning_rate'].max()):.3g}"),
        ("time of all steps", duration(seconds)),
        ("speed", f"{scored / seconds:,.0f} tokens/s" if seconds > 0 else ""),
        ("accelerators", accelerator_hours(record.provenance.get("accelerators"), seconds)),
    ]


def _num_steps(log: pd.DataFrame) -> int:
    return int(log["step"].nunique())
