"""The search itself: formulas, then candidate after candidate from a sampler."""

import logging
from collections.abc import Iterator, Sequence
from itertools import islice

import numpy as np

from rope.factors import RescaleFactors
from search.ledger import Entry, Ledger, Scored, ranked
from search.samplers.joint import JointSampler, Schedule, SpaceExhaustedError

logger = logging.getLogger(__name__)


def measure_formulas(
    ledger: Ledger, formulas: Sequence[RescaleFactors], documents: tuple[str, ...], *, races: bool = True
) -> list[Scored]:
    """Measure every formula as a named trial of the study; none for none."""
    entries = [Entry(ledger.trials.ask_formula(factors), documents) for factors in formulas]
    return ledger.score_in_rounds(entries, races=races)


def best_formula_of(ledger: Ledger, formulas: Sequence[Scored]) -> RescaleFactors:
    """Return the formula with the lowest loss.

    Raises:
        ValueError: Not one of them could be measured; the first reason is given.
    """
    complete = ranked(formulas)
    if not complete:
        reason = ledger.first_failure([entry.factors for entry in formulas]) or "no perplexity is finite"
        raise ValueError(
            f"at least one formula must be measurable, got {len(formulas)} failures, the first: {reason}. "
            "Mend its cause and start a new run."
        )
    return complete[0].factors


def evolve(
    ledger: Ledger, sampler: JointSampler, *, schedule: Schedule = "generational", budget: int | None = None
) -> list[Scored]:
    """Run a sampler to its end and return every candidate that is complete and could be measured, best first.

    In the generational schedule a generation is asked for when the one before is complete; in the steady one a
    candidate is asked for as soon as a worker is free for it. Candidates that the study holds already come first. The
    search ends early, and says so in the log, where nothing new is left to try.

    Args:
        ledger: Where all is written.
        sampler: What chooses.
        schedule: See above.
        budget: Forwards of search documents, those of the formulas among them, after which no new candidate is asked
            for; None for as many as the sampler wants.
    """
    source = _asked(ledger, sampler, schedule, budget)
    if schedule == "steady":
        return ranked(ledger.score(source, with_gradient=sampler.needs_gradient))
    found: list[Scored] = []
    for generation, size in enumerate(sampler.generation_sizes):
        entries = list(islice(source, size))
        scored = (
            ledger.score(entries, with_gradient=True) if sampler.needs_gradient else ledger.score_in_rounds(entries)
        )
        found += scored
        if len(scored) > 1:  # a step of a walk is no news
            ledger.progress.generation(generation)
        if len(scored) < size:
            break
    return ranked(found)


def _asked(ledger: Ledger, sampler: JointSampler, schedule: Schedule, budget: int | None) -> Iterator[Entry]:
    before = ledger.trials.asked_before(sampler)
    ends = {0, *np.cumsum(sampler.generation_sizes).tolist()}
    for asked in before:
        yield Entry(asked, ledger.panels.of(asked.generation))
    for number in range(len(before), max(ends)):
        # a generation that was begun is finished: its candidates are compared with one another
        may_stop = schedule == "steady" or number in ends
        if budget is not None and may_stop and ledger.spent >= budget:
            logger.info("the budget of %d forwards is spent", budget)
            return
        try:
            asked = ledger.trials.ask_candidate(sampler)
        except SpaceExhaustedError as error:
            logger.warning("the search ends early: %s", error)
            return
        yield Entry(asked, ledger.panels.of(asked.generation))
