"""From what a search found to who won: validation documents choose among the finalists, held-out ones judge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from results.measurement import candidate_key
from results.summary import MethodResult, ParetoPoint, best_result
from rope.factors import RescaleFactors
from search.ledger import Entry, Ledger, Scored, ranked
from search.objectives import knee, pareto_front, perplexities


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Ids of the documents by which candidates are judged; but for the first, no search saw them."""

    search: tuple[str, ...]
    """Those of the target length that formulas and finalists were measured on."""
    validation: tuple[str, ...]
    """They choose among the finalists."""
    heldout: tuple[str, ...]
    """They tell how good the chosen one is."""
    original: tuple[str, ...]
    """As held-out, of the original length."""


class Judged(NamedTuple):
    """Who took part in the end, and the front of two objectives."""

    results: list[tuple[RescaleFactors, MethodResult]]
    """Formulas and finalists with what they have."""
    front: tuple[ParetoPoint, ...]
    """Empty with one objective."""

    @property
    def winner(self) -> RescaleFactors:
        """The factors that won."""
        best = best_result([result for _, result in self.results], both_lengths=bool(self.front))
        return next(factors for factors, result in self.results if result is best)


def measure_picks(ledger: Ledger, candidates: Sequence[RescaleFactors], documents: tuple[str, ...]) -> list[Scored]:
    """Measure finalists on the documents that the formulas were measured on, as trials of the study.

    Args:
        ledger: Where all is written.
        candidates: Searched factors.
        documents: Ids.

    Returns:
        Those that could be measured, lowest loss first.
    """
    entries = [
        Entry(ledger.trials.ask_formula(factors, name=f"finalist {number}"), documents)
        for number, factors in enumerate(candidates, start=1)
    ]
    return ranked(ledger.score_in_rounds(entries, races=False))


def judge(
    ledger: Ledger,
    *,
    formulas: Sequence[Scored],
    searched: Sequence[Scored],
    tried: Sequence[Scored],
    num_finalists: int,
    splits: Splits,
) -> Judged:
    """Choose among the finalists by validation and measure them and every formula on held-out documents.

    With two objectives the choice is the knee of the front instead of validation's; where that is a formula, no
    searched candidate can win.

    Args:
        ledger: Where all is written.
        formulas: All that were measured, at every temperature.
        searched: The finalists, best first.
        tried: Other searched candidates that were measured on the same documents; of them a front is made.
        num_finalists: How many of the best formulas enter the race on the validation documents.
        splits: What they are judged on.
    """
    ledger.progress.phase("choosing among the finalists")
    front, knee_key = _front([*formulas, *searched, *tried]) if len(ledger.objectives.names) > 1 else ((), None)
    finalists = {candidate_key(entry.factors): entry for entry in searched}
    rivals = {candidate_key(entry.factors): entry for entry in ranked(formulas)[:num_finalists]}
    knees = {candidate_key(entry.factors): entry for entry in [*tried, *formulas]}  # a search may begin at a formula
    if knee_key is not None and knee_key not in finalists:
        (rivals if knees[knee_key] in formulas else finalists)[knee_key] = knees[knee_key]
    raced = ledger.race([entry.factors for entry in (rivals | finalists).values()], splits.validation)
    chosen = knee_key if knee_key is not None else _chosen(raced, set(finalists))
    ledger.progress.phase("judging on held-out documents")
    shown = _best_temperatures(formulas) | rivals | finalists
    candidates = [entry.factors for entry in shown.values()]
    # by the same mean as below, whatever aggregate the search went by
    search = ledger.perplexities([entry.factors for entry in ranked(shown.values())], splits.search)
    validation = ledger.perplexities([entry.factors for entry in ranked(raced.values())], splits.validation)
    heldout = ledger.perplexities(candidates, splits.heldout)
    original = ledger.perplexities(candidates, splits.original)
    results = [
        (
            entry.factors,
            MethodResult(
                name=entry.factors.method,
                kind="searched" if key in finalists else "formula",
                critical_dim=entry.factors.critical_dim,
                attention_temperature=entry.factors.attention_temperature,
                search_perplexity=search.get(key, math.nan),
                validation_perplexity=validation.get(key, math.nan),
                heldout_perplexity=heldout[key],
                original_perplexity=original[key],
                is_picked=key == chosen,
            ),
        )
        for key, entry in shown.items()
    ]
    return Judged(results, front)


def _chosen(raced: dict[str, Scored], finalists: set[str]) -> str | None:
    """Return the key of the searched finalist with the lowest loss; one that was dropped only if all were."""
    able = [key for key, entry in raced.items() if key in finalists and not math.isnan(entry.loss)]
    return min(able, key=lambda key: (raced[key].is_dropped, raced[key].loss), default=None)


def _best_temperatures(formulas: Sequence[Scored]) -> dict[str, Scored]:
    """Return each formula at the temperature at which it lost least on the search documents, by key."""

    def rank(entry: Scored) -> tuple[bool, bool, float]:
        return math.isnan(entry.loss), entry.is_dropped, entry.loss

    best: dict[str, Scored] = {}
    for entry in formulas:
        rival = best.get(entry.factors.method)
        if rival is None or rank(entry) < rank(rival):
            best[entry.factors.method] = entry
    return {candidate_key(entry.factors): entry for entry in best.values()}


def _front(measured: Sequence[Scored]) -> tuple[tuple[ParetoPoint, ...], str | None]:
    """Return the front of two objectives, and the key of its knee."""
    complete = ranked(measured)
    front = [complete[place] for place in pareto_front([entry.losses for entry in complete])]
    if not front:
        return (), None
    best = knee([entry.losses for entry in front])
    points = (
        ParetoPoint(
            name=entry.factors.method,
            attention_temperature=entry.factors.attention_temperature,
            long_perplexity=perplexities(entry.losses)[0],
            short_ratio=perplexities(entry.losses)[1],
            is_knee=place == best,
        )
        for place, entry in enumerate(front)
    )
    return tuple(points), candidate_key(front[best].factors)
