"""The loop between candidates and scorer: bounded, complete, and unharmed by failures."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from math import inf, isnan

import numpy as np
import pytest

from results.measurement import Measurement, candidate_key, perplexity
from rope.factors import RescaleFactors
from search.driver import Pair, Work, measure
from search.panels import Batches
from search.space import Genome, SearchSpace
from workers.scorer import Scorer, Task, WorkerSpeed

MakeScorer = Callable[..., Scorer]
BATCHES = [("a", "b"), ("c",), ("d", "e")]
BLOCKS: list[Batches] = [[("a", "b")], [("c",)], [("d", "e")]]


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

    @property
    def speeds(self) -> tuple[WorkerSpeed, ...]:
        return self._scorer.speeds

    def close(self) -> None:
        self._scorer.close()


Found = dict[RescaleFactors, list[Measurement]]


def works(candidates: Iterable[RescaleFactors]) -> Iterator[Work]:
    """Each candidate on all documents, in one block."""
    return (Work(factors, [BATCHES]) for factors in candidates)


def ignore(measurements: Sequence[Measurement]) -> None:
    """Record nothing."""


def keep(known: dict[Pair, Measurement], measurements: Sequence[Measurement]) -> None:
    """Record measurements so that they are known from now on, as the ledger does."""
    known.update(((entry.candidate, entry.document), entry) for entry in measurements)


def measure_all(scorer: Scorer, candidates: Iterable[RescaleFactors]) -> Found:
    return {work.factors: found for work, found in measure(scorer, works(candidates), known={}, record=ignore)}


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
    for number, (work, _) in enumerate(measure(scorer, works(some), known={}, record=ignore), start=1):
        assert work.factors == some[number - 1]
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
    measured = measure(scorer, works(some), known=known, record=recorded.extend)
    found = {work.factors: measurements for work, measurements in measured}
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

    for work, _ in measure(make_scorer(loss, capacity=4), works(ask()), known={}, record=ignore):
        finished.append(work.factors)
    # By hand: three tasks a candidate and four in flight, so the second is asked for at once, and then the n-th when
    # the (n - 2)-th is complete
    assert finished_when_asked == [0, 0, 1, 2, 3, 4]


def test_measurements_are_recorded_before_the_candidate_is_given_back(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    recorded: list[Measurement] = []
    for work, found in measure(make_scorer(loss), works(some), known={}, record=recorded.extend):
        assert [entry for entry in recorded if entry.candidate == candidate_key(work.factors)] == found


@pytest.mark.parametrize("capacity", [1, 4, 40])
def test_a_dropped_candidate_reads_no_further_and_all_that_is_in_flight_still_arrives(
    make_scorer: MakeScorer, some: list[RescaleFactors], capacity: int
) -> None:
    asked: list[tuple[RescaleFactors, str]] = []

    def goes_on(work: Work, found: Sequence[Measurement]) -> bool:
        asked.append((work.factors, "".join(entry.document for entry in found)))
        return (work.factors, len(found)) not in ((some[1], 2), (some[4], 3))

    scorer = Watched(make_scorer(loss, capacity=capacity, rng=np.random.default_rng(1)))
    recorded: list[Measurement] = []
    source = (Work(factors, BLOCKS) for factors in some)
    measured = measure(scorer, source, known={}, record=recorded.extend, goes_on=goes_on)
    read = {work.factors: "".join(entry.document for entry in found) for work, found in measured}
    assert read == dict.fromkeys(some, "abcde") | {some[1]: "ab", some[4]: "abc"}
    submitted = Counter((task.candidate, document) for task in scorer.tasks for document in task.documents)
    assert submitted == Counter((factors, document) for factors, documents in read.items() for document in documents)
    assert len(recorded) == submitted.total()
    # asked once after each block, never after the last
    expected = {(factors, documents) for factors in some for documents in ("ab", "abc")} - {(some[1], "abc")}
    assert sorted(asked, key=str) == sorted(expected, key=str)


def test_a_dropped_candidate_has_what_it_read_and_not_what_is_known_of_later_blocks(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    known = {
        (entry.candidate, entry.document): entry
        for entry in measure_all(make_scorer(loss), some[:1])[some[0]]
        if entry.document in "bde"
    }
    scorer = Watched(make_scorer(loss))
    work = Work(some[0], BLOCKS)
    ((_, found),) = measure(scorer, [work], known=known, record=ignore, goes_on=lambda work, found: False)
    assert [entry.document for entry in found] == ["a", "b"]
    assert [task.documents for task in scorer.tasks] == [("a",)]


def test_nobody_is_asked_about_a_candidate_of_which_all_that_is_left_is_known(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    def never(work: Work, found: Sequence[Measurement]) -> bool:
        raise AssertionError

    whole = measure_all(make_scorer(loss), some[:1])[some[0]]
    for unknown in ("", "a", "ab"):
        known = {(entry.candidate, entry.document): entry for entry in whole if entry.document not in unknown}
        scorer = Watched(make_scorer(loss))
        measured = measure(scorer, [Work(some[0], BLOCKS)], known=known, record=ignore, goes_on=never)
        assert [found for _, found in measured] == [whole]
        assert "".join("".join(task.documents) for task in scorer.tasks) == unknown


def test_a_block_of_which_all_is_known_is_passed_over_but_not_the_question_after_it(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    known = {
        (entry.candidate, entry.document): entry
        for entry in measure_all(make_scorer(loss), some[:2])[some[0]]
        if entry.document in "abc"
    }
    asked: list[int] = []

    def goes_on(work: Work, found: Sequence[Measurement]) -> bool:
        asked.append(len(found))
        return True

    scorer = Watched(make_scorer(loss))
    measured = measure(scorer, [Work(some[0], BLOCKS)], known=known, record=ignore, goes_on=goes_on)
    assert [len(found) for _, found in measured] == [5]
    assert asked == [2, 3]
    assert [task.documents for task in scorer.tasks] == [("d", "e")]


def test_the_next_block_of_a_candidate_comes_before_another_candidate(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    scorer = Watched(make_scorer(loss))
    list(measure(scorer, (Work(factors, BLOCKS) for factors in some), known={}, record=ignore))
    assert [task.candidate for task in scorer.tasks] == [factors for factors in some for _ in BLOCKS]


@pytest.mark.parametrize("capacity", [1, 2, 3, 8])
def test_a_candidate_at_work_on_several_panels_at_once_gets_them_all_and_reads_shared_documents_once(
    make_scorer: MakeScorer, some: list[RescaleFactors], capacity: int
) -> None:
    whole = {entry.document: entry for entry in measure_all(make_scorer(loss), some[:1])[some[0]]}
    panels = ("abc", "bcd", "de")
    source = [Work(some[0], [[(document,) for document in panel]]) for panel in panels]
    for seed in range(5):
        scorer = Watched(make_scorer(loss, capacity=capacity, rng=np.random.default_rng(seed)))
        known: dict[Pair, Measurement] = {}
        measured = measure(scorer, source, known=known, record=partial(keep, known))
        found = {tuple(work.documents): entries for work, entries in measured}
        assert found == {tuple(panel): [whole[document] for document in panel] for panel in panels}
        assert Counter(task.documents for task in scorer.tasks) == Counter((document,) for document in "abcde")


def test_no_candidate_is_asked_for_while_the_last_one_only_waits_for_its_twin(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    num_finished, asked_after = 0, []

    def ask() -> Iterator[RescaleFactors]:
        for factors in [some[0]] * 3 + some[1:3]:
            asked_after.append(num_finished)
            yield factors

    known: dict[Pair, Measurement] = {}
    for _ in measure(make_scorer(loss, capacity=8), works(ask()), known=known, record=partial(keep, known)):
        num_finished += 1
    # By hand: the second waits for the first, of the third all is known, and there is room for the other two at once
    assert asked_after == [0, 0, 2, 3, 3]
    assert num_finished == 5


def test_what_is_known_without_its_gradient_is_measured_again_with_it(
    make_scorer: MakeScorer, some: list[RescaleFactors]
) -> None:
    def failing(factors: RescaleFactors, document: str) -> float:
        return inf if document == "e" else loss(factors, document)

    plain = measure_all(make_scorer(failing), some[:1])[some[0]]
    known = {(entry.candidate, entry.document): entry for entry in plain}
    scorer = Watched(make_scorer(failing, gradient=lambda factors, document: [ord(document)] * 17))
    work = Work(some[0], [BATCHES], with_gradient=True)
    recorded: list[Measurement] = []
    ((_, found),) = measure(scorer, [work], known=known, record=recorded.extend)
    gradients = [(float(ord(document)),) * 17 for document in "abcd"]
    assert [entry.gradient for entry in found] == [*gradients, None]
    assert [entry.sum_nll for entry in found[:4]] == [entry.sum_nll for entry in plain[:4]]
    # what failed once is not tried again
    assert [(task.documents, task.with_gradient) for task in scorer.tasks] == [
        (documents, True) for documents in (("a", "b"), ("c",), ("d",))
    ]
    known |= {(entry.candidate, entry.document): entry for entry in recorded}
    again = Watched(make_scorer(failing))
    assert [entries for _, entries in measure(again, [work], known=known, record=ignore)] == [found]
    assert again.tasks == []
