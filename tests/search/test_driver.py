"""The loop between candidates and scorer: bounded, complete, and unharmed by failures."""

from collections import Counter
from collections.abc import Callable
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

    def close(self) -> None:
        self._scorer.close()


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
    assert len(list(measure(scorer, some, BATCHES))) == 6
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
    found = dict(measure(scorer, some, BATCHES))
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
    for number, (factors, _) in enumerate(measure(scorer, some, BATCHES), start=1):
        assert factors == some[number - 1]
        assert len(scorer.tasks) == 3 * number


def test_the_completion_order_changes_no_measurement(make_scorer: MakeScorer, some: list[RescaleFactors]) -> None:
    in_order = dict(measure(make_scorer(loss), some, BATCHES))
    shuffled = dict(measure(make_scorer(loss, capacity=8, rng=np.random.default_rng(3)), some, BATCHES))
    assert list(in_order) != list(shuffled)
    assert in_order == shuffled


def test_a_failed_document_fails_its_candidate_only(make_scorer: MakeScorer, some: list[RescaleFactors]) -> None:
    def failing(factors: RescaleFactors, document: str) -> float:
        return inf if (factors, document) == (some[2], "d") else loss(factors, document)

    scorer = make_scorer(failing, capacity=8, rng=np.random.default_rng(0))
    found = dict(measure(scorer, some, BATCHES))
    assert [isnan(perplexity(found[factors])) for factors in some] == [False, False, True, False, False, False]
    reasons = [measurement.failure for measurement in found[some[2]]]
    assert reasons == [None, None, None, "cannot read d", None]


def test_no_candidates_need_no_scorer(make_scorer: MakeScorer) -> None:
    scorer = Watched(make_scorer(loss))
    assert list(measure(scorer, [], BATCHES)) == []
    assert scorer.tasks == []
