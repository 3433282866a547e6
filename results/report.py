"""The report: one HTML file that needs no network, from one or several runs."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TypeAlias

from results.atomic_file import write_text
from results.measurement import candidate_key
from results.report_parts.candidates import candidates_html
from results.report_parts.depth import depth_html
from results.report_parts.evaluation_grid import grid_html
from results.report_parts.evaluation_headline import evaluation_headline_html, evaluation_state_html, findings_in_words
from results.report_parts.evaluation_kept import harness_html, retention_html
from results.report_parts.evaluation_lengths import ruler_html, window_html
from results.report_parts.evaluation_origins import contenders_html, effort_html
from results.report_parts.evaluation_record import EvaluationRecord
from results.report_parts.evaluation_texts import texts_html
from results.report_parts.factor_curves import factor_curves_html
from results.report_parts.headline import gain_in_words, headline_html, state_html
from results.report_parts.markup import counted, element, escaped, perplexity_text, table
from results.report_parts.origins import duration, provenance_html, spending_html
from results.report_parts.record import RunRecord
from results.report_parts.search_progress import progress_html
from results.report_parts.tuning_outcome import (
    tuning_headline_html,
    tuning_in_words,
    tuning_state_html,
    window_losses_html,
)
from results.report_parts.tuning_record import TuningRecord

MOST_POINTS = 3000
"""Dots of all runs together, so that the file stays small."""
MOST_LINES = 1200
"""Candidates on the parallel coordinates of all runs together."""
MARK = '<meta name="generator" content="ropewalk report">'
"""What tells a report from any other file."""


Record: TypeAlias = RunRecord | EvaluationRecord | TuningRecord
"""A search, an evaluation or a fine-tuning."""


def report_html(records: Sequence[Record]) -> str:
    """Return the report of runs as an HTML document without scripts or anything to fetch.

    Args:
        records: One at least, in the order in which they are shown.
    """
    first = records[0]
    title = f"Ropewalk report: {_name(first)}" if len(records) == 1 else f"Ropewalk report: {len(records)} runs"
    runs = "\n".join(_article(record, records) for record in records)
    version = dict(first.provenance.get("versions") or {}).get("ropewalk")  # type: ignore[call-overload]
    return Template(_resource("report.html")).substitute(
        title=escaped(title),
        style=_resource("report.css"),
        body=(_overview(records) if len(records) > 1 else "") + runs,
        footer=escaped(f"Made by ropewalk report{f'; the run was made by Ropewalk {version}' if version else ''}."),
    )


def write_report(path: Path, records: Sequence[Record]) -> None:
    """Write the report of runs; an older report of that name is replaced, another file is not.

    Args:
        path: File to write; its folder exists.
        records: One at least.

    Raises:
        ValueError: path is another file than a report.
        OSError: It cannot be written to.
    """
    check_replaceable(path)
    write_text(path, report_html(records))


def check_replaceable(path: Path) -> None:
    """Refuse to write over what is no report.

    Raises:
        ValueError: path is a folder, lies in none, or is another file than a report.
        OSError: It cannot be read.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise ValueError(f"--output must be a file in a folder that exists, got {path}. Choose another.")
    if path.exists() and MARK not in path.read_text(encoding="utf-8", errors="replace")[:2000]:
        raise ValueError(f"--output must be new or an older report, got {path}, which is another file. Choose another.")


def _article(record: Record, records: Sequence[Record]) -> str:
    if isinstance(record, EvaluationRecord):
        return _evaluation_html(record, [one for one in records if isinstance(one, RunRecord)])
    if isinstance(record, TuningRecord):
        return _tuning_html(record)
    return _search_html(record, num_runs=len(records))


def _evaluation_html(record: EvaluationRecord, searches: Sequence[RunRecord]) -> str:
    window = f"{record.config.get('model')}, {_lengths(record)}"
    origins = [
        element("p", f"{name} is the winner of this search: {_name(search)}.", classes="small")
        for name, key in record.keys.items()
        for search in searches
        if search.factors is not None and candidate_key(search.factors) == key
    ]
    return (
        f"<article>{element('h2', _name(record))}"
        f"{element('p', window, classes='small')}{''.join(origins)}"
        f"{evaluation_state_html(record)}{evaluation_headline_html(record)}{ruler_html(record)}{grid_html(record)}"
        f"{window_html(record)}{texts_html(record)}{retention_html(record)}{harness_html(record)}"
        f"{contenders_html(record)}{factor_curves_html(record)}{effort_html(record)}{provenance_html(record)}</article>"
    )


def _tuning_html(record: TuningRecord) -> str:
    window = f"{record.config.get('model')}, {_lengths(record)}"
    return (
        f"<article>{element('h2', _name(record))}"
        f"{element('p', window, classes='small')}"
        f"{tuning_state_html(record)}{tuning_headline_html(record)}{window_losses_html(record)}"
        f"{provenance_html(record)}</article>"
    )


def _search_html(record: RunRecord, *, num_runs: int) -> str:
    window = f"{record.config.get('model')}, {_lengths(record)}"
    return (
        f"<article>{element('h2', _name(record))}"
        f"{element('p', window, classes='small')}"
        f"{state_html(record)}{headline_html(record)}{factor_curves_html(record)}"
        f"{progress_html(record, most_points=max(1, MOST_POINTS // num_runs))}{depth_html(record)}"
        f"{candidates_html(record, most_lines=max(2, MOST_LINES // num_runs))}"
        f"{spending_html(record)}{provenance_html(record)}</article>"
    )


def _overview(records: Sequence[Record]) -> str:
    searches = [record for record in records if isinstance(record, RunRecord)]
    header = ("run", "window", "winner", "held-out", "original length", "wall time")
    shown = table("The winner of each run, perplexities", header, list(map(_row, searches))) if searches else ""
    told = [f"{_name(record)}: {gain_in_words(record.summary)}" for record in searches if record.summary]
    told += [
        f"{_name(record)}: {' '.join(findings_in_words(record))}"
        for record in records
        if isinstance(record, EvaluationRecord)
    ]
    told += [f"{_name(record)}: {tuning_in_words(record)[0]}" for record in records if isinstance(record, TuningRecord)]
    return shown + (f"<ul>{''.join(element('li', one) for one in told)}</ul>" if told else "")


def _row(record: RunRecord) -> list[str]:
    summary = record.summary
    if summary is None:
        return [_name(record), _lengths(record), "unfinished", "-", "-", "-"]
    winner = summary.winning_result
    values = (winner.heldout_perplexity, winner.original_perplexity)
    return [_name(record), _lengths(record), winner.name, *map(perplexity_text, values), duration(summary.seconds)]


def _name(record: Record) -> str:
    model = Path(str(record.config.get("model"))).name
    if isinstance(record, EvaluationRecord):
        return f"Evaluation of {model}, {record.path.name}"
    if isinstance(record, TuningRecord):
        return f"Fine-tuning of {model}, {record.path.name}"
    return f"{model} to {record.config.get('target_length')} tokens, {record.path.name}"


def _lengths(record: Record) -> str:
    if isinstance(record, EvaluationRecord):
        lengths = str(record.config.get("lengths", "")).replace(",", ", ")
        return f"lengths {lengths} tokens, {counted(len(record.contenders), 'contender')}"
    if isinstance(record, TuningRecord):
        factors = record.factors
        return "" if factors is None else f"{factors.original_length} to {factors.target_length} tokens"
    return f"{record.config.get('original_length')} to {record.config.get('target_length')} tokens"


def _resource(name: str) -> str:
    return files("results").joinpath(name).read_text(encoding="utf-8")
