"""The loop between candidates and scorer: bounded, complete, and unharmed by failures."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from math import inf, isnan

import numpy as np
import pytest

from results.measurement import Measurement, candidate_key, perplexity
from rope.factors import RescaleFactors
from search.driver import measure
from search.space import Genome, SearchSpace
from workers.scorer import Scorer, Task

MakeScorer = Callable[..., Scorer]
BATCHES = [("a", "b"), ("c",), ("d", "e")]


class Watched:
    """A scorer with a note of how many tasks were in flight."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._num_in_flight = 0
        self.most_in_flight = 0
        self.tasks: list[Task] = []

    @property
    def capacity(self) -> int:
        return self._scorer.capacity

    def submit(self, task: Task) -> None:
        self._scorer.submit(task)
        self.tasks.append(task)
        self._num_in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self._num_in_flight)

    def collect(self) -> list[Measurement]:
        measurements = self._scorer.collect()
        self._num_in_flight -= 1
        return measurements

    @property
    def num_workers(self) -> int:
        return self._scorer.num_workers

    @property
    def num_retries(self) -> int:
        return self._scorer.num_retries

    @property
    def accelerators(self) -> tuple[str, ...]:
        return self._scorer.accelerators

    def close(self) -> None:
        self._scorer.close()


Found = dict[RescaleFactors, list[Measurement]]


def measure_all(scorer: Scorer, candidates: Iterable[RescaleFactors]) -> Found:
    return dict(measure(scorer, candidates, BATCHES, known={}, record=lambda measurements: None))


@pytest.fixture
def some(space: SearchSpace) -> list[RescaleFactors]:
    """Six candidates, flat at 9 to 14."""
    return [space.factors(Genome(4, (100 * value,) * 12), method="searched") for value in range(9, 15)]


def loss(factors: RescaleFactors, document: str) -> float:
    return factors.values[-1] / 10 + ord(document)


@pytest.mark.parametrize("capacity", [1, 2, 3, 8, 1_000])
def test_tasks_in_flight_reach_the_capacity_and_never_exceed_it(
    make_scorer: MakeScorer, some: list[RescaleFactors], capacity: int
) -> None:
    scorer = Watched(make_scorer(loss, capacity=capacity, rng=np.random.default_rng(0)))
    assert len(measure_all(scorer, some)) == 6
    assert scorer.most_in_flight == min(capacity, 18)


@pytest.mark.parametrize("capacity", [1, 8])
def test_every_candidate_is_measured_on_every_document_exactly_once(
    make_scorer: MakeScorer, some: list[RescaleFactors], capacity: int
) -> None:
    calls: Counter[tuple[str, str]] = Counter()

    def counted(factors: RescaleFactors, document: str) -> float:
        calls[candidate_key(factors), document] += 1
        return loss(factors, document)

    scorer = Watched(make_scorer(counted, capacity=capacity, rng=np.random.default_rng(0)))
    found = measure_all(scorer, some)
    assert calls == Counter((candidate_key(factors), document) for factors in some for document in "abcde")
    assert Counter(task.documents for task in scorer.tasks) == Counter(dict.fromkeys(BATCHES, 6))
    assert set(found) == set(some)
    for factors, measurements in found.items():
        assert [measurement.document for measurement in measurements] == list("abcde")
        assert [measurement.sum_nll for measurement in measurements] == [
            loss(factors, document) for document in "abcde"
        ]


def test_a_candidate_is_given_back_as_soon_as_its_last_document_is_in(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    scorer = Watched(make_scorer(loss))
    for number, (factors, _) in enumerate(
        measure(scorer, some, BATCHES, known={}, record=lambda measurements: None), start=1
    ):
        assert factors == some[number - 1]
        assert len(scorer.tasks) == 3 * number


def test_the_completion_order_changes_no_measurement(make_scorer: MakeScorer, some: list[RescaleFactors]) -> None:
    in_order = measure_all(make_scorer(loss), some)
    shuffled = measure_all(make_scorer(loss, capacity=8, rng=np.random.default_rng(3)), some)
    assert list(in_order) != list(shuffled)
    assert in_order == shuffled


def test_a_failed_document_fails_its_candidate_only(make_scorer: MakeScorer, some: list[RescaleFactors]) -> None:
    def failing(factors: RescaleFactors, document: str) -> float:
        return inf if (factors, document) == (some[2], "d") else loss(factors, document)

    scorer = make_scorer(failing, capacity=8, rng=np.random.default_rng(0))
    found = measure_all(scorer, some)
    assert [isnan(perplexity(found[factors])) for factors in some] == [False, False, True, False, False, False]
    reasons = [measurement.failure for measurement in found[some[2]]]
    assert reasons == [None, None, None, "cannot read d", None]


def test_no_candidates_need_no_scorer(make_scorer: MakeScorer) -> None:
    scorer = Watched(make_scorer(loss))
    assert measure_all(scorer, []) == {}
    assert scorer.tasks == []


def test_what_is_known_is_not_measured_again_and_the_rest_of_a_batch_is(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    whole = measure_all(make_scorer(loss), some)
    known = {
        (entry.candidate, entry.document): entry
        for number, found in enumerate(whole.values())
        for entry in found
        if number < 2 or (number == 2 and entry.document in "abd")
    }
    scorer = Watched(make_scorer(loss, capacity=3))
    recorded: list[Measurement] = []
    found = dict(measure(scorer, some, BATCHES, known=known, record=recorded.extend))
    assert found == whole
    assert list(found)[:2] == some[:2]  # nothing had to be waited for
    assert {(entry.candidate, entry.document) for entry in recorded}.isdisjoint(known)
    assert [task.documents for task in scorer.tasks if task.candidate == some[2]] == [("c",), ("e",)]


def test_a_candidate_is_asked_for_when_a_worker_is_free_for_it_and_knows_all_that_is_finished(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    finished: list[RescaleFactors] = []
    finished_when_asked = []

    def ask() -> Iterator[RescaleFactors]:
        for factors in some:
            finished_when_asked.append(len(finished))
            yield factors

    for factors, _ in measure(make_scorer(loss, capacity=4), ask(), BATCHES, known={}, record=lambda found: None):
        finished.append(factors)
    # By hand: three tasks a candidate and four in flight, so the second is asked for at once, and then the n-th when
    # the (n - 2)-th is complete
    assert finished_when_asked == [0, 0, 1, 2, 3, 4]


def test_measurements_are_recorded_before_the_candidate_is_given_back(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    recorded: list[Measurement] = []
    for factors, found in measure(make_scorer(loss), some, BATCHES, known={}, record=recorded.extend):
        assert [entry for entry in recorded if entry.candidate == candidate_key(factors)] == found
