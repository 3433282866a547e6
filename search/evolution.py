"""The search itself: ask candidates, measure them, tell them, and keep ledger, store and progress true."""

import logging
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from results.measurement import Measurement, candidate_key, perplexity
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.driver import Batches, Pair, measure
from search.progress import SearchProgress
from search.samplers.joint import JointSampler, Schedule, SpaceExhaustedError
from search.study import Asked, Trials
from workers.scorer import Scorer

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

    trials: Trials
    """The trials of the Optuna study."""
    scorer: Scorer
    """Where candidates are measured."""
    store: MeasurementStore
    """Where measurements are kept."""
    progress: SearchProgress
    """What the user sees."""
    measurements: dict[Pair, Measurement] = field(default_factory=dict)
    """All measurements of the run by candidate key and document, those of processes that are gone among them."""

    def score(self, asked: Iterable[Asked], batches: Batches) -> list[Scored]:
        """Measure candidates on the search documents, tell their trials as they are complete, return them as asked.

        What is measured already is not measured again, and a trial that is told is not told again.

        Args:
            asked: Candidates with their trials; a lazy iterable is taken from as workers become free.
            batches: Ids of the documents of each forward.
        """
        taken: list[Asked] = []
        twins: dict[str, list[Asked]] = defaultdict(list)
        perplexities: dict[str, float] = {}

        def distinct() -> Iterator[RescaleFactors]:
            for entry in asked:
                key = candidate_key(entry.factors)
                taken.append(entry)
                twins[key].append(entry)
                if len(twins[key]) == 1:
                    yield entry.factors
                elif key in perplexities:
                    self._tell(entry, batches)

        for factors, _ in self._measured(distinct(), batches):
            key = candidate_key(factors)
            for entry in twins[key]:
                perplexities[key] = self._tell(entry, batches)
            self.progress.candidate(perplexities[key], factors.method)
        return [Scored(factors=entry.factors, perplexity=perplexities[candidate_key(entry.factors)]) for entry in taken]

    def perplexities(self, candidates: Sequence[RescaleFactors], batches: Batches) -> dict[str, float]:
        """Return perplexities by candidate key, without trials: for documents that the search never sees."""
        distinct = {candidate_key(factors): factors for factors in candidates}
        return {
            candidate_key(factors): perplexity(measurements)
            for factors, measurements in self._measured(distinct.values(), batches)
        }

    def first_failure(self, candidates: Sequence[RescaleFactors]) -> str | None:
        """Return the first reason why one of these could not be measured; None if there is none."""
        keys = {candidate_key(factors) for factors in candidates}
        failures = (entry.failure for (key, _), entry in self.measurements.items() if key in keys)
        return next((reason for reason in failures if reason is not None), None)

    def _tell(self, asked: Asked, batches: Batches) -> float:
        """Tell a trial that is not told yet; return its perplexity, NaN where it has none."""
        key = candidate_key(asked.factors)
        found = [self.measurements[key, document] for batch in batches for document in batch]
        if asked.is_told:
            value = perplexity(found)
            return value if math.isfinite(value) else math.nan
        return self.trials.tell(asked.trial, found)

    def _measured(
        self, candidates: Iterable[RescaleFactors], batches: Batches
    ) -> Iterator[tuple[RescaleFactors, list[Measurement]]]:
        try:
            for factors, measurements in measure(
                self.scorer, candidates, batches, known=self.measurements, record=self._record
            ):
                _warn_of_failures(factors, measurements)
                yield factors, measurements
        finally:
            self.store.flush()

    def _record(self, measurements: Sequence[Measurement]) -> None:
        self.store.add(measurements)
        self.measurements.update(pairs(measurements))
        self.progress.advance(measurements, self.scorer)


def pairs(measurements: Iterable[Measurement]) -> Mapping[Pair, Measurement]:
    """Return measurements by candidate key and document."""
    return {(entry.candidate, entry.document): entry for entry in measurements}


def measure_formulas(ledger: Ledger, formulas: Sequence[RescaleFactors], batches: Batches) -> list[Scored]:
    """Measure every formula as a named trial of the study; none for none.

    Raises:
        ValueError: Not one of them could be measured; the first reason is given.
    """
    scored = ledger.score([ledger.trials.ask_formula(factors) for factors in formulas], batches)
    if formulas and all(math.isnan(entry.perplexity) for entry in scored):
        reason = ledger.first_failure(formulas) or "no perplexity is finite"
        raise ValueError(
            f"at least one formula must be measurable, got {len(scored)} failures, the first: {reason}. "
            "Mend its cause and start a new run."
        )
    return scored


def evolve(
    ledger: Ledger, sampler: JointSampler, batches: Batches, *, schedule: Schedule = "generational"
) -> list[Scored]:
    """Run a sampler to the end of its budget and return every candidate that could be measured, best first.

    In the generational schedule a generation is asked for when the one before is complete; in the steady one a
    candidate is asked for as soon as a worker is free for it. Candidates that the study holds already come first. The
    search ends early, and says so in the log, where nothing new is left to try.
    """
    source = _asked(ledger.trials, sampler)
    found: list[Scored] = []
    if schedule == "steady":
        found = ledger.score(source, batches)
    else:
        for generation, size in enumerate(sampler.generation_sizes):
            scored = ledger.score(list(islice(source, size)), batches)
            found += scored
            ledger.progress.generation(generation)
            if len(scored) < size:
                break
    return sorted((entry for entry in found if not math.isnan(entry.perplexity)), key=lambda entry: entry.perplexity)


def best_of(scored: Sequence[Scored]) -> Scored:
    """Return the candidate with the lowest perplexity; at least one must have one."""
    return min((entry for entry in scored if not math.isnan(entry.perplexity)), key=lambda entry: entry.perplexity)


def _asked(trials: Trials, sampler: JointSampler) -> Iterator[Asked]:
    before = trials.asked_before(sampler)
    yield from before
    for _ in range(sum(sampler.generation_sizes) - len(before)):
        try:
            asked = trials.ask_candidate(sampler)
        except SpaceExhaustedError as error:
            logger.warning("the search ends early: %s", error)
            return
        yield asked


def _warn_of_failures(factors: RescaleFactors, measurements: Sequence[Measurement]) -> None:
    reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
    if reasons:
        logger.warning("a %s candidate failed on %d documents: %s", factors.method, len(reasons), reasons[0])
