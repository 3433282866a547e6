"""Tables across runs: what searches measured on held-out documents, what evaluations scored."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pandas as pd

from results.evaluation import (
    HARNESS,
    RETENTION,
    SCORES,
    TEXT_LOSSES,
    HarnessScore,
    Retention,
    SampleScore,
    TextLoss,
    mean_scores,
)
from results.row_store import read_rows, table_path
from results.summary import SUMMARY, Summary
from results.text_loss_tables import perplexities, retained
from results.tuning_outcome import OUTCOME, Outcome

Format = Literal["table", "csv", "json"]
"""How a table is written."""


def compare(runs: Sequence[Path]) -> pd.DataFrame:
    """Return the results of finished runs, one below the other.

    Args:
        runs: Run directories of searches, evaluations and fine-tunings; distinct names.

    Returns:
        One row per run, factors, task and length: columns run, factors, task, length (tokens; missing for tasks of
        lm-evaluation-harness), value, unit, num_samples. A search has the task "needle", with the held-out and the
        original perplexity. An evaluation has its tasks with the mean score in percent, "perplexity" and its other
        forms, "retention switched" and "retention pinned" with the mean Kullback-Leibler divergence from the original
        model in nats per position, and the harness's tasks with each metric as a unit. A fine-tuning has "needle" and
        "perplexity", before and after in place of the factors. A value that is not finite is missing.

    Raises:
        ValueError: A folder holds no finished run, or one of a version that cannot be read, or two have one name.
        OSError: A file cannot be read.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must have distinct names, got {', '.join(names)}. Drop one, or rename its folder.")
    columns = ["run", "factors", "task", "length", "value", "unit", "num_samples"]
    frames = [_results(run)[columns] for run in runs]
    return pd.concat(frames, ignore_index=True).astype({"length": "Int64"})


def written(frame: pd.DataFrame, kind: Format) -> str:
    """Return a comparison as text that ends in a line break.

    Args:
        frame: As `compare` returns it.
        kind: table for people: a column for each run; csv and json: a row for each result, json with null for NaN.
    """
    if kind == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if kind == "json":
        # Not pandas' own to_json, which keeps ten decimals: of 3e-12 nats nothing
        records = frame.astype(object).where(frame.notna(), None).to_dict("records")
        return json.dumps(records, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    wide = _side_by_side(frame)
    return wide.to_string(float_format=lambda value: f"{value:.4g}", na_rep="") + "\n"


def _side_by_side(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a column for each run; rows by task, unit, length and factors, names in the order of their first row."""
    keys = ["task", "unit", "length", "factors"]
    places = {name: pd.factorize(frame[name])[0] for name in ("task", "unit", "factors")}
    ordered = frame.iloc[frame.assign(**places).reset_index(drop=True).sort_values(keys).index]
    # a missing length would lose its row
    ordered = ordered.assign(length=ordered["length"].map(str).where(ordered["length"].notna(), ""))
    rows = pd.MultiIndex.from_frame(ordered[keys].drop_duplicates())
    return ordered.pivot(index=keys, columns="run", values="value").reindex(rows)[frame["run"].drop_duplicates()]


def _results(run: Path) -> pd.DataFrame:
    readers = {SCORES: _scores, TEXT_LOSSES: _text_perplexities, RETENTION: _divergences, HARNESS: _harness}
    found = [read(run).assign(run=run.name) for name, read in readers.items() if table_path(run, name).is_file()]
    if found:
        return pd.concat(found, ignore_index=True)
    if (run / SUMMARY).is_file():
        return _needle_perplexities(run)
    if (run / OUTCOME).is_file():
        return _tuned(run)
    raise ValueError(
        f"a comparison must be of finished runs, got {run}, which has neither {SUMMARY} nor {OUTCOME} nor any of "
        f"{', '.join(f'{name}.parquet' for name in readers)}. Finish it by its own command, or leave it out."
    )


def _scores(run: Path) -> pd.DataFrame:
    means = mean_scores(read_rows(run, SCORES, SampleScore))
    named = means.rename(columns={"contender": "factors", "count": "num_samples"})
    return named.assign(value=100.0 * means["mean"], unit="percent")


def _text_perplexities(run: Path) -> pd.DataFrame:
    found = perplexities(read_rows(run, TEXT_LOSSES, TextLoss))
    named = found.rename(columns={"contender": "factors", "num_texts": "num_samples"})
    # as `ropewalk evaluate --tasks` calls them
    tasks = ["perplexity" if form == "sliding" else f"perplexity_{form}" for form in found["form"]]
    return named.assign(task=tasks, value=found["perplexity"], unit="perplexity")


def _divergences(run: Path) -> pd.DataFrame:
    found = retained(read_rows(run, RETENTION, Retention))
    named = found.rename(columns={"contender": "factors", "num_texts": "num_samples"})
    return named.assign(task="retention " + found["serving"], value=found["mean_divergence"], unit="nats")


def _harness(run: Path) -> pd.DataFrame:
    rows = read_rows(run, HARNESS, HarnessScore)
    named = rows.rename(columns={"contender": "factors", "metric": "unit"})
    return named.assign(length=math.nan, value=named["value"].astype(float))


def _tuned(run: Path) -> pd.DataFrame:
    """Return what a fine-tuning was measured at: before, after, and after as plain transformers serves it."""
    try:
        outcome = Outcome.from_json((run / OUTCOME).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{run / OUTCOME}: {error}") from error
    states = {
        "before": outcome.before,
        "after": outcome.after,
        "after, plain transformers": outcome.after_plain_transformers,
    }
    rows = [
        {"factors": state, "task": task, "length": length, "value": value}
        for state, measured in states.items()
        if measured is not None
        for task, length, value in (
            ("needle", outcome.target_length, measured.needle_target),
            ("needle", outcome.original_length, measured.needle_original),
            ("perplexity", outcome.target_length, measured.plain_target),
            ("perplexity", outcome.original_length, measured.plain_original),
        )
        if not (state == "after, plain transformers" and math.isnan(value))  # at the target it is what "after" is
    ]
    return pd.DataFrame(rows).assign(run=run.name, unit="perplexity", num_samples=math.nan)


def _needle_perplexities(run: Path) -> pd.DataFrame:
    try:
        summary = Summary.from_json((run / SUMMARY).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{run / SUMMARY}: {error}") from error
    rows = []
    for result in summary.methods:
        row = asdict(result)
        for length, name in ((summary.target_length, "heldout"), (summary.original_length, "original")):
            rows.append(
                {
                    "run": run.name,
                    "factors": f"{result.name} at {result.attention_temperature:.4f}",
                    "task": "needle",
                    "length": length,
                    "value": row[f"{name}_perplexity"],
                    "unit": "perplexity",
                    "num_samples": math.nan,
                }
            )
    frame = pd.DataFrame(rows)
    # Two candidates of a method may have one temperature to four digits
    number = frame.groupby(["factors", "length"]).cumcount()
    return frame.assign(
        factors=frame["factors"].where(number == 0, frame["factors"] + " (" + (number + 1).astype(str) + ")")
    )
