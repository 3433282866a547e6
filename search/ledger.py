"""The ledger: measures candidates, tells their trials, and keeps store, budget and progress true."""

import logging
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from results.measurement import Measurement, candidate_key, mean_loss
from results.store import MeasurementStore
from rope.factors import RescaleFactors
from search.driver import Pair, Work, measure
from search.objectives import Losses, Objectives, perplexities
from search.panels import Panels
from search.progress import SearchProgress
from search.racing import Racing
from search.study import Asked, Trials, Verdict
from workers.scorer import Scorer

GRADIENT_FORWARDS = 3
"""What a loss with its gradient costs, in forwards: 2.8 to 3.1 were measured, and 4 where long documents recompute
their activations."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A candidate with its losses on the search documents."""

    factors: RescaleFactors
    """The candidate."""
    losses: Losses
    """One per objective, nats per token; NaN if a measurement failed. An estimate for one that was dropped."""
    is_dropped: bool = False
    """Whether it lost a race: it was not measured on all documents and never wins."""

    @property
    def loss(self) -> float:
        """Sum over the objectives, nats per token; NaN if a measurement failed or a perplexity is no finite number."""
        return math.fsum(self.losses) if all(map(math.isfinite, perplexities(self.losses))) else math.nan

    @property
    def perplexity(self) -> float:
        """Perplexity at the target length."""
        return perplexities(self.losses)[0]


class Entry(NamedTuple):
    """A candidate with its trial, and the documents that it is to be measured on."""

    asked: Asked
    """Candidate and trial."""
    documents: tuple[str, ...]
    """Ids."""


class _Outcome(NamedTuple):
    """What became of a candidate."""

    scored: Scored
    """Its losses."""
    read: Sequence[Measurement]
    """What they come from; of one that was dropped, without what it happens to have on the documents it was spared."""


class Ledger:
    """What the loop writes to: the study, the measurements, the progress; and the scorer that it reads from."""

    def __init__(
        self,
        *,
        trials: Trials,
        scorer: Scorer,
        store: MeasurementStore,
        progress: SearchProgress,
        panels: Panels,
        objectives: Objectives,
        racing: Racing | None = None,
        measurements: Iterable[Measurement] = (),
    ) -> None:
        """Take what a search needs.

        Args:
            trials: The trials of the Optuna study.
            scorer: Where candidates are measured.
            store: Where measurements are kept.
            progress: What the user sees.
            panels: Documents of the candidates of each generation.
            objectives: What candidates are chosen by.
            racing: Rule by which candidates are dropped; None measures each on all of its documents.
            measurements: Those of processes that are gone.
        """
        self.trials = trials
        self.progress = progress
        self.panels = panels
        self.objectives = objectives
        self.measurements: dict[Pair, Measurement] = {}
        """All measurements of the run by candidate key and document."""
        self.spent = 0
        """Forwards of search documents so far; what a budget is compared with."""
        self._scorer = scorer
        self._store = store
        self._racing = racing
        self._search = frozenset(panels.documents) | frozenset(panels.always)
        self._leaders: dict[tuple[str, ...], tuple[float, RescaleFactors]] = {}
        self._keep(measurements)

    def score(self, entries: Iterable[Entry], *, with_gradient: bool = False) -> list[Scored]:
        """Measure candidates one by one, tell their trials as they are complete, and return them as asked.

        What is measured already is not measured again, and a trial that is told is not told again. With a race, a
        candidate is dropped when it is clearly worse than the best of those that are complete on its documents; none
        is whose gradient is wanted.

        Args:
            entries: Candidates; a lazy iterable is taken from as workers become free.
            with_gradient: Whether their losses' gradients are wanted.
        """
        taken: list[Entry] = []
        at_work: dict[tuple[str, tuple[str, ...]], list[Entry]] = defaultdict(list)
        found: dict[tuple[str, tuple[str, ...]], _Outcome] = {}

        def works() -> Iterator[Work]:
            for entry in entries:
                identity = candidate_key(entry.asked.factors), entry.documents
                taken.append(entry)
                if identity in found:
                    self._tell(entry, found[identity])
                elif entry.asked.was_dropped:
                    dropped = Scored(factors=entry.asked.factors, losses=entry.asked.losses, is_dropped=True)
                    found[identity] = _Outcome(dropped, self._of(entry.asked.factors, entry.documents))
                    self._count(dropped)
                else:
                    at_work[identity].append(entry)
                    num = len(entry.documents)
                    # a descent follows every gradient: without the steps that look worse it would be a biased one
                    looks = [num] if with_gradient else self._looks(num)
                    blocks = self.panels.blocks(entry.documents, looks, with_gradient=with_gradient)
                    yield Work(entry.asked.factors, blocks, with_gradient)

        for work, measurements in self._measured(works(), self._goes_on):
            identity = candidate_key(work.factors), tuple(work.documents)
            if identity not in found:
                found[identity] = self._scored(work.factors, identity[1], measurements)
                self._count(found[identity].scored, is_comparable=self.panels.num_fresh == 0)
            self._tell(at_work[identity].pop(0), found[identity])
        return [found[candidate_key(entry.asked.factors), entry.documents].scored for entry in taken]

    def score_in_rounds(self, entries: Sequence[Entry], *, races: bool = True) -> list[Scored]:
        """Measure candidates side by side, tell their trials, and return them as asked.

        As `score`, but the race goes in rounds: all candidates read their next few documents, then those are dropped
        that are clearly worse than the best of all. So the order in which workers answer changes nothing.

        Args:
            entries: Candidates of one generation, all with the same documents.
            races: Whether any may be dropped.
        """
        if not entries:
            return []
        documents = entries[0].documents
        raced = self._raced([entry.asked.factors for entry in entries], documents, races=races)
        # those that are complete come first: what was dropped is placed by its distance from the best of them
        outcomes = {
            key: self._scored(factors, documents, self._of(factors, documents[:num_read]))
            for key, (factors, num_read) in raced.items()
        }
        as_asked = [outcomes[candidate_key(entry.asked.factors)] for entry in entries]
        for entry, outcome in zip(entries, as_asked, strict=True):
            self._tell(entry, outcome)
        for outcome in outcomes.values():
            self._count(outcome.scored)
        return [outcome.scored for outcome in as_asked]

    def race(
        self, candidates: Sequence[RescaleFactors], documents: tuple[str, ...], *, races: bool = True
    ) -> dict[str, Scored]:
        """Measure candidates in rounds, without trials, and return them by their key.

        Args:
            candidates: Whatever factors.
            documents: Ids; those of documents that the search never sees too.
            races: Whether any may be dropped.
        """
        return {
            key: self._scored(factors, documents, self._of(factors, documents[:num_read])).scored
            for key, (factors, num_read) in self._raced(candidates, documents, races=races).items()
        }

    def perplexities(self, candidates: Sequence[RescaleFactors], documents: tuple[str, ...]) -> dict[str, float]:
        """Return perplexities by candidate key on all of the documents, without trials and without a race."""
        distinct = {candidate_key(factors): factors for factors in candidates}
        blocks = self.panels.blocks(documents, [len(documents)])
        measured = self._measured(Work(factors, blocks) for factors in distinct.values())
        return {candidate_key(work.factors): perplexities((mean_loss(found),))[0] for work, found in measured}

    def measurements_on(self, factors: RescaleFactors, documents: tuple[str, ...]) -> list[Measurement]:
        """Return what a candidate has on documents, measured where it is not known; without a trial."""
        self.perplexities([factors], documents)
        return self._of(factors, documents)

    def first_failure(self, candidates: Sequence[RescaleFactors]) -> str | None:
        """Return the first reason why one of these could not be measured; None if there is none."""
        keys = {candidate_key(factors) for factors in candidates}
        failures = (entry.failure for (key, _), entry in self.measurements.items() if key in keys)
        return next((reason for reason in failures if reason is not None), None)

    def _raced(
        self, candidates: Sequence[RescaleFactors], documents: tuple[str, ...], *, races: bool
    ) -> dict[str, tuple[RescaleFactors, int]]:
        """Measure in rounds; return candidates and how many documents each read, those that read all of them first."""
        alive = {candidate_key(factors): factors for factors in candidates}
        dropped: dict[str, tuple[RescaleFactors, int]] = {}
        looks = self._looks(len(documents)) if races else [len(documents)]
        for block, look in zip(self.panels.blocks(documents, looks), looks, strict=True):
            for _ in self._measured(Work(factors, [block]) for factors in alive.values()):
                pass
            if look < len(documents):
                worse = self._worse(alive, documents[:look], documents)
                dropped |= {key: (factors, look) for key, factors in worse.items()}
                alive = {key: factors for key, factors in alive.items() if key not in worse}
        return {key: (factors, len(documents)) for key, factors in alive.items()} | dropped

    def _looks(self, num_documents: int) -> list[int]:
        return [num_documents] if self._racing is None else self._racing.looks(num_documents)

    def _goes_on(self, work: Work, found: Sequence[Measurement]) -> bool:
        leader = self._leaders.get(tuple(work.documents))
        if leader is None or self._racing is None:
            return True
        reference = [self.measurements[candidate_key(leader[1]), entry.document] for entry in found]
        return not self._racing.is_worse(_document_losses(found), _document_losses(reference))

    def _worse(
        self, alive: Mapping[str, RescaleFactors], seen: Sequence[str], documents: tuple[str, ...]
    ) -> dict[str, RescaleFactors]:
        """Return those of the candidates that are clearly worse than the best of all on the documents seen."""
        assert self._racing is not None
        losses = {key: _document_losses(self._of(factors, seen)) for key, factors in alive.items()}
        if documents in self._leaders:
            leader = self._leaders[documents][1]
            losses[candidate_key(leader)] = _document_losses(self._of(leader, seen))
        finite = [key for key, found in losses.items() if not np.isnan(found).any()]
        best = losses[min(finite, key=lambda key: math.fsum(losses[key]))] if finite else [math.inf] * len(seen)
        return {key: factors for key, factors in alive.items() if self._racing.is_worse(losses[key], best)}

    def _of(self, factors: RescaleFactors, documents: Sequence[str]) -> list[Measurement]:
        """Return what a candidate has on documents, in their order; those that a race spared it are left out."""
        key = candidate_key(factors)
        return [self.measurements[key, document] for document in documents if (key, document) in self.measurements]

    def _scored(self, factors: RescaleFactors, documents: tuple[str, ...], read: Sequence[Measurement]) -> _Outcome:
        losses = self.objectives.losses(read)
        if len(read) == len(documents):
            scored = Scored(factors=factors, losses=losses)
            self._offer(documents, scored)
            return _Outcome(scored, read)
        if documents in self._leaders and not math.isnan(losses[0]):
            # the documents that it did read may be the easy ones: it is placed by its distance from the best on them
            leader = self._leaders[documents][1]
            whole, shared = (
                self.objectives.losses(self._of(leader, part))[0]
                for part in (documents, [entry.document for entry in read])
            )
            losses = (losses[0] - shared + whole,)
        return _Outcome(Scored(factors=factors, losses=losses, is_dropped=True), read)

    def _offer(self, documents: tuple[str, ...], scored: Scored) -> None:
        if not math.isnan(scored.loss) and scored.loss < self._leaders.get(documents, (math.inf,))[0]:
            self._leaders[documents] = scored.loss, scored.factors

    def _tell(self, entry: Entry, outcome: _Outcome) -> None:
        if not entry.asked.is_told:
            scored, read = outcome
            values, gradient = perplexities(scored.losses), self.objectives.gradient(read)
            verdict = Verdict(values, len(entry.documents), scored.is_dropped, gradient)
            self.trials.tell(entry.asked.trial, read, verdict)

    def _count(self, scored: Scored, *, is_comparable: bool = True) -> None:
        """Count a candidate for the display; the best of those that few documents of their own flatter is no news."""
        shown = is_comparable and not scored.is_dropped
        self.progress.candidate(scored.perplexity if shown else math.nan, scored.factors.method)

    def _measured(
        self, works: Iterable[Work], goes_on: Callable[[Work, Sequence[Measurement]], bool] = lambda work, found: True
    ) -> Iterator[tuple[Work, list[Measurement]]]:
        try:
            for work, measurements in measure(
                self._scorer, works, known=self.measurements, record=self._record, goes_on=goes_on
            ):
                _warn_of_failures(work.factors, measurements)
                yield work, measurements
        finally:
            self._store.flush()

    def _record(self, measurements: Sequence[Measurement]) -> None:
        self._store.add(measurements)
        self._keep(measurements)
        self.progress.advance(measurements, self._scorer)

    def _keep(self, measurements: Iterable[Measurement]) -> None:
        for entry in measurements:
            pair = entry.candidate, entry.document
            if entry.document in self._search:
                self.spent += _forwards(entry) - _forwards(self.measurements.get(pair))
            self.measurements[pair] = entry


def ranked(scored: Iterable[Scored]) -> list[Scored]:
    """Return those that are complete and could be measured, lowest loss first."""
    complete = (entry for entry in scored if not entry.is_dropped and not math.isnan(entry.loss))
    return sorted(complete, key=lambda entry: entry.loss)


def _forwards(measurement: Measurement | None) -> int:
    return 0 if measurement is None else 1 if measurement.gradient is None else GRADIENT_FORWARDS


def _document_losses(measurements: Sequence[Measurement]) -> list[float]:
    return [mean_loss([entry]) for entry in measurements]


def _warn_of_failures(factors: RescaleFactors, measurements: Sequence[Measurement]) -> None:
    reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
    if reasons:
        logger.warning("a %s candidate failed on %d documents: %s", factors.method, len(reasons), reasons[0])
