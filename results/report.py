"""The report: one HTML file that needs no network, from one or several runs."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from results.atomic_file import write_text
from results.report_parts.candidates import candidates_html
from results.report_parts.depth import depth_html
from results.report_parts.factor_curves import factor_curves_html
from results.report_parts.headline import gain_in_words, headline_html, state_html
from results.report_parts.markup import element, escaped, perplexity_text, table
from results.report_parts.origins import duration, provenance_html, spending_html
from results.report_parts.record import RunRecord
from results.report_parts.search_progress import progress_html

MOST_POINTS = 3000
"""Dots of all runs together, so that the file stays small."""
MOST_LINES = 1200
"""Candidates on the parallel coordinates of all runs together."""
MARK = '<meta name="generator" content="ropewalk report">'
"""What tells a report from any other file."""


def report_html(records: Sequence[RunRecord]) -> str:
    """Return the report of runs as an HTML document without scripts or anything to fetch.

    Args:
        records: One at least, in the order in which they are shown.
    """
    first = records[0]
    title = f"Ropewalk report: {_name(first)}" if len(records) == 1 else f"Ropewalk report: {len(records)} runs"
    runs = "\n".join(_run_html(record, num_runs=len(records)) for record in records)
    version = dict(first.provenance.get("versions") or {}).get("ropewalk")  # type: ignore[call-overload]
    return Template(_resource("report.html")).substitute(
        title=escaped(title),
        style=_resource("report.css"),
        body=(_overview(records) if len(records) > 1 else "") + runs,
        footer=escaped(f"Made by ropewalk report{f'; the run was made by Ropewalk {version}' if version else ''}."),
    )


def write_report(path: Path, records: Sequence[RunRecord]) -> None:
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


def _run_html(record: RunRecord, *, num_runs: int) -> str:
    window = f"{record.config.get('model')}, {_lengths(record)}"
    return (
        f"<article>{element('h2', _name(record))}"
        f"{element('p', window, classes='small')}"
        f"{state_html(record)}{headline_html(record)}{factor_curves_html(record)}"
        f"{progress_html(record, most_points=max(1, MOST_POINTS // num_runs))}{depth_html(record)}"
        f"{candidates_html(record, most_lines=max(2, MOST_LINES // num_runs))}"
        f"{spending_html(record)}{provenance_html(record)}</article>"
    )


def _overview(records: Sequence[RunRecord]) -> str:
    rows = []
    for record in records:
        summary = record.summary
        if summary is None:
            rows.append([_name(record), _lengths(record), "unfinished", "-", "-", "-"])
            continue
        winner = summary.winning_result
        values = (winner.heldout_perplexity, winner.original_perplexity)
        rows.append(
            [_name(record), _lengths(record), winner.name, *map(perplexity_text, values), duration(summary.seconds)]
        )
    header = ("run", "window", "winner", "held-out", "original length", "wall time")
    told = "".join(
        element("li", f"{_name(record)}: {gain_in_words(record.summary)}") for record in records if record.summary
    )
    return table("The winner of each run, perplexities", header, rows) + (f"<ul>{told}</ul>" if told else "")


def _name(record: RunRecord) -> str:
    model = Path(str(record.config.get("model"))).name
    return f"{model} to {record.config.get('target_length')} tokens, {record.path.name}"


def _lengths(record: RunRecord) -> str:
    return f"{record.config.get('original_length')} to {record.config.get('target_length')} tokens"


def _resource(name: str) -> str:
    return files("results").joinpath(name).read_text(encoding="utf-8")
