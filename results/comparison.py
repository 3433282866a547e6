"""Tables across runs: what searches measured on held-out documents, what evaluations scored."""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

import pandas as pd

from results.evaluation import TABLE, mean_scores
from results.summary import SUMMARY, Summary

Format = Literal["table", "csv", "json"]
"""How a table is written."""


def compare(runs: Sequence[Path]) -> pd.DataFrame:
    """Return the results of finished runs, one below the other.

    Args:
        runs: Run directories of searches and evaluations; distinct names.

    Returns:
        One row per run, factors, task and length: columns run, factors, task, length, value, unit, num_samples. A
        search has the task "needle", with the held-out and the original perplexity; an evaluation has its tasks, with
        the mean score in percent.

    Raises:
        ValueError: A folder holds no finished run, or one of a version that cannot be read, or two have one name.
        OSError: A file cannot be read.
    """
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"runs must have distinct names, got {', '.join(names)}. Drop one, or rename its folder.")
    frames = [_results(run) for run in runs]
    columns = ["run", "factors", "task", "length", "value", "unit", "num_samples"]
    return pd.concat(frames, ignore_index=True)[columns]


def written(frame: pd.DataFrame, kind: Format) -> str:
    """Return a comparison as text that ends in a line break.

    Args:
        frame: As `compare` returns it.
        kind: table for people: a column for each run; csv and json: a row for each result, json with null for NaN.
    """
    if kind == "csv":
        return frame.to_csv(index=False, lineterminator="\n")
    if kind == "json":
        text = frame.to_json(orient="records", indent=2)
        assert isinstance(text, str)
        return json.dumps(json.loads(text), indent=2, ensure_ascii=False) + "\n"
    wide = frame.pivot_table(
        index=["task", "unit", "length", "factors"], columns="run", values="value", sort=False, dropna=False
    )
    wide = wide.dropna(how="all")
    return wide.to_string(float_format=lambda value: f"{value:.4g}", na_rep="") + "\n"


def _results(run: Path) -> pd.DataFrame:
    if (run / TABLE).is_file():
        return _scores(run)
    if (run / SUMMARY).is_file():
        return _perplexities(run)
    raise ValueError(
        f"a comparison must be of finished runs, got {run}, which has neither {SUMMARY} nor {TABLE}. "
        "Finish it by its own command, or leave it out."
    )


def _scores(run: Path) -> pd.DataFrame:
    try:
        means = mean_scores(pd.read_parquet(run / TABLE))
    except (KeyError, ValueError) as error:
        raise ValueError(
            f"{run / TABLE} must hold the scores that Ropewalk writes, got: {error}. Run the evaluation again."
        ) from error
    named = means.rename(columns={"contender": "factors", "count": "num_samples"})
    return named.assign(run=run.name, value=100.0 * means["mean"], unit="percent")


def _perplexities(run: Path) -> pd.DataFrame:
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
