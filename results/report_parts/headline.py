"""What a run found, in a sentence and a table."""

import math

import numpy as np

from results.report_parts.markup import counted, element, perplexity_text, section, table
from results.report_parts.record import RunRecord, Shown
from results.summary import MethodResult, Summary, best_formula
from results.table import CAPTION, FRONT_CAPTION

UNFINISHED = {"stopped": "was stopped by its user", "failed": "failed", "finished": "ended without a summary"}


def state_html(record: RunRecord) -> str:
    """Return what a reader must know first: that the run is not finished, or what could not be read."""
    notes = "".join(element("p", note, classes="note") for note in record.notes)
    if record.summary is not None:
        return notes
    return element("p", f"Unfinished: {_state(record)}.", classes="banner") + notes


def headline_html(record: RunRecord) -> str:
    """Return the gain in words and every method's perplexities, best first."""
    if record.summary is None:
        return section("Perplexity so far", _table_so_far(record))
    told = element("p", gain_in_words(record.summary), classes="gain")
    return section(
        "Result", told, element("p", _evidence(record, record.summary)), _table(record), _front_table(record.summary)
    )


def gain_in_words(summary: Summary) -> str:
    """Return who won and by how much, in a sentence or two."""
    winner, both = summary.winning_result, bool(summary.front)
    where = "summed over held-out documents of both lengths" if both else "on held-out documents"
    if winner.kind == "formula":
        has_searched = any(result.kind == "searched" for result in summary.methods)
        return (
            f"The formula {winner.name} wins{': what the search chose did not beat it' if has_searched else ''}. Its "
            f"perplexity on held-out documents is {perplexity_text(winner.heldout_perplexity)}."
        )
    if math.isnan(summary.gain):
        return f"{winner.name} wins; no formula could be measured on the held-out documents."
    formula = best_formula(summary.methods, both_lengths=both)
    return (
        f"{winner.name} loses {summary.gain:.1%} less than the best formula, {formula.name}, {where}: perplexity "
        f"{perplexity_text(winner.heldout_perplexity)} against {perplexity_text(formula.heldout_perplexity)} at "
        f"{summary.target_length:,} tokens."
    )


def _evidence(record: RunRecord, summary: Summary) -> str:
    """Return on how many documents that rests, and on how many of them the winner lost less."""
    heldout = record.losses
    num_documents = heldout["document"].nunique()
    told = f"Measured on {counted(num_documents, 'held-out document')} that neither search nor choice saw."
    winner = next((one for one in record.shown if one.is_winner), None)
    if winner is None or winner.key is None or math.isnan(summary.gain) or summary.gain == 0:
        return told
    formula = best_formula(summary.methods, both_lengths=bool(summary.front))
    rival = next(one for one in record.shown if one.result is formula)
    by_document = heldout.pivot(index="document", columns="candidate", values="loss")
    if winner.key not in by_document or rival.key not in by_document:
        return told
    difference = by_document[winner.key].to_numpy() - by_document[rival.key].to_numpy()
    num_better, num_compared = int(np.sum(difference < 0)), int(np.sum(np.isfinite(difference)))
    return f"{told} On {num_better} of {num_compared} of them the winner loses less than {rival.label}."


def _table(record: RunRecord) -> str:
    header = (
        "method",
        "held-out",
        "original length",
        "search",
        "validation",
        "gap, nats",
        "temperature",
        "critical dim.",
    )
    rows = [_cells(one, one.result) for one in record.shown if one.result is not None]
    marked = next((number for number, one in enumerate(record.shown) if one.is_winner), None)
    caption = "Perplexity of the needles' answers, by method"
    return table(caption, header, rows, marked=marked, classes="numbers") + element("p", CAPTION, classes="small")


def _cells(one: Shown, result: MethodResult) -> list[str]:
    return [
        f"{one.label} *" if one.is_winner else one.label,
        perplexity_text(result.heldout_perplexity),
        perplexity_text(result.original_perplexity),
        perplexity_text(result.search_perplexity),
        perplexity_text(result.validation_perplexity),
        "-" if math.isnan(result.gap) else f"{result.gap:+.3f}",
        f"{result.attention_temperature:.4f}",
        "-" if result.critical_dim is None else str(result.critical_dim),
    ]


def _front_table(summary: Summary) -> str:
    if not summary.front:
        return ""
    rows = [
        [
            f"{point.name} K" if point.is_knee else point.name,
            perplexity_text(point.long_perplexity),
            f"{point.short_ratio:.4f}",
            f"{point.attention_temperature:.4f}",
        ]
        for point in summary.front
    ]
    header = ("method", "target length", "original length, ratio", "temperature")
    marked = next((number for number, point in enumerate(summary.front) if point.is_knee), None)
    told = table("Pareto front of the search", header, rows, marked=marked, classes="numbers")
    return told + element("p", FRONT_CAPTION, classes="small")


def _table_so_far(record: RunRecord) -> str:
    rows = [
        [one.label, perplexity_text(one.perplexity), f"{one.candidate.attention_temperature:.4f}"]
        for one in record.shown
        if one.candidate is not None
    ]
    if not rows:
        return element("p", "No candidate is measured whole yet.")
    caption = "Best candidate of each method so far, on its search documents; they may differ from one to another"
    return table(caption, ("method", "perplexity", "temperature"), rows, classes="numbers")


def _state(record: RunRecord) -> str:
    status = record.status
    if status is None:
        return "its driver left no status"
    done = f"{status.num_documents:,} of about {status.total_documents:,} documents, {status.phase}"
    if status.state == "running":
        return f"{'its driver is at work' if record.is_alive else 'its driver was killed'}, {done}"
    reason = f" ({status.reason})" if status.reason and status.state == "failed" else ""
    return f"it {UNFINISHED[status.state]}{reason}, {done}"
