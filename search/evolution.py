"""The generational loop: ask a generation, measure it, tell it, and keep ledger, store and progress true."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain

import optuna
from optuna.trial import Trial, TrialState

from results.measurement import Measurement, candidate_key, perplexity
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.driver import measure
from search.progress import SearchProgress
from search.samplers.generational import GenerationalSampler, SpaceExhaustedError
from search.study import ask_candidate, ask_formula, tell
from workers.scorer import Scorer

Batches = Sequence[tuple[str, ...]]
"""Ids of the documents of each forward."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate with its perplexity on the search documents."""

    factors: RescaleFactors
    """The candidate."""
    perplexity: float
    """NaN if a measurement failed."""


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """What the loop writes to: the study, the measurements, the progress; and the scorer that it reads from."""

    study: optuna.Study
    """The Optuna study."""
    scorer: Scorer
    """Where candidates are measured."""
    store: MeasurementStore
    """Where measurements are kept."""
    progress: SearchProgress
    """What the user sees."""
    failures: list[str] = field(default_factory=list)
    """Reasons of measurements that failed, in order."""
    known: dict[str, list[Measurement]] = field(default_factory=dict)
    """Measurements on the search documents by candidate key; a searched candidate may equal a formula."""

    def score(self, asked: Sequence[tuple[Trial, RescaleFactors]], batches: Batches) -> list[Scored]:
        """Measure candidates on the search documents, tell their trials as they are complete, return them as asked.

        A candidate that is known is not measured again.
        """
        trials = defaultdict(list)
        for trial, factors in asked:
            trials[candidate_key(factors)].append(trial)
        known = [(key, self.known[key]) for key in trials if key in self.known]
        new = [factors for _, factors in asked if candidate_key(factors) not in self.known]
        perplexities: dict[str, float] = {}
        for key, measurements in chain(known, self._measured(new, batches)):
            self.known[key] = measurements
            for trial in trials[key]:
                perplexities[key] = tell(self.study, trial, measurements)
            self.progress.candidate(perplexities[key])
        return [Scored(factors=factors, perplexity=perplexities[candidate_key(factors)]) for _, factors in asked]

    def knows(self, factors: RescaleFactors) -> bool:
        """Return whether these factors were measured on the search documents."""
        return candidate_key(factors) in self.known

    def perplexities(self, candidates: Sequence[RescaleFactors], batches: Batches) -> dict[str, float]:
        """Return perplexities by candidate key, without trials: for documents that the search never sees."""
        return {key: perplexity(measurements) for key, measurements in self._measured(candidates, batches)}

    def _measured(
        self, candidates: Sequence[RescaleFactors], batches: Batches
    ) -> Iterator[tuple[str, list[Measurement]]]:
        try:
            for factors, measurements in measure(self.scorer, candidates, batches):
                self.store.add(measurements)
                self.progress.advance(len(measurements))
                self._note_failures(factors, measurements)
                yield candidate_key(factors), measurements
        finally:
            self.store.flush()

    def _note_failures(self, factors: RescaleFactors, measurements: Sequence[Measurement]) -> None:
        reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
        self.failures.extend(reasons)
        if reasons:
            logger.warning("a %s candidate failed on %d documents: %s", factors.method, len(reasons), reasons[0])


def measure_formulas(ledger: Ledger, formulas: Sequence[RescaleFactors], batches: Batches) -> list[Scored]:
    """Measure every formula as a named trial of the study; none for none.

    Raises:
        ValueError: Not one of them could be measured; the first reason is given.
    """
    scored = ledger.score([(ask_formula(ledger.study, factors), factors) for factors in formulas], batches)
    if formulas and all(math.isnan(entry.perplexity) for entry in scored):
        reason = ledger.failures[0] if ledger.failures else "no perplexity is finite"
        raise ValueError(
            f"at least one formula must be measurable, got {len(scored)} failures, the first: {reason}. "
            "Mend its cause and start again."
        )
    return scored


def evolve(ledger: Ledger, sampler: GenerationalSampler, batches: Batches) -> list[Scored]:
    """Run a sampler's generations and return every candidate that could be measured, best first.

    It ends early, and says so in the log, where nothing new is left to try.
    """
    ledger.study.sampler = sampler
    found: list[Scored] = []
    for generation, size in enumerate(sampler.generation_sizes):
        asked = _ask_generation(ledger.study, sampler, size)
        found += ledger.score(asked, batches)
        ledger.progress.generation(generation)
        if len(asked) < size:
            break
    return sorted((entry for entry in found if not math.isnan(entry.perplexity)), key=lambda entry: entry.perplexity)


def best_of(scored: Sequence[Scored]) -> Scored:
    """Return the candidate with the lowest perplexity; at least one must have one."""
    return min((entry for entry in scored if not math.isnan(entry.perplexity)), key=lambda entry: entry.perplexity)


def _ask_generation(study: optuna.Study, sampler: GenerationalSampler, size: int) -> list[tuple[Trial, RescaleFactors]]:
    """Ask for candidates; fewer than `size` come back where the sampler finds nothing new, and the log says why."""
    asked: list[tuple[Trial, RescaleFactors]] = []
    for _ in range(size):
        try:
            asked.append(ask_candidate(study, sampler.space, method=sampler.method))
        except SpaceExhaustedError as error:
            logger.warning("the search ends early: %s", error)
            empty = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])[-1]
            study.tell(empty.number, state=TrialState.FAIL)
            break
    return asked
