"""Races in the ledger: who is dropped, what is left unread, and what becomes of it."""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from optuna.trial import TrialState

from results.measurement import candidate_key
from results.store import read_measurements
from rope.factors import RescaleFactors
from search.evolution import evolve, measure_formulas
from search.ledger import Entry, Ledger, Scored, ranked
from search.panels import Panels
from search.racing import Racing
from search.samplers.joint import Schedule
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import Genome, SearchSpace
from workers.scorer import Scorer

MakeScorer = Callable[..., Scorer]
MakeLedger = Callable[..., Ledger]

DOCUMENTS = tuple("abcdefghijkl")
PANELS = Panels(documents=DOCUMENTS, size=12)
SMALL = EvolutionConfig(population_size=16, num_parents=8, num_mutations=4, num_crossovers=4, num_generations=3)
SCHEDULES: tuple[Schedule, ...] = ("steady", "generational")


def offset(document: str) -> float:
    """Return what a document costs everyone: 0.1 for a, 0.2 for b, ..."""
    return (ord(document) - ord("a") + 1) / 10


def noise(factors: RescaleFactors, document: str) -> float:
    """Return a standard normal number of this candidate's on this document."""
    seed = [int(candidate_key(factors), 16), ord(document)]
    return float(np.random.default_rng(seed).standard_normal())


def quality(factors: RescaleFactors) -> float:
    """Return how much a candidate loses on each document: a tenth of its largest factor."""
    return factors.values[-1] / 10


@pytest.fixture
def some(space: SearchSpace) -> list[RescaleFactors]:
    """Eight candidates, flat at 8 to 15: their qualities are 0.8 to 1.5."""
    return [space.factors(Genome(4, (100 * value,) * 12), method="made by hand") for value in range(8, 16)]


def score(ledger: Ledger, candidates: Sequence[RescaleFactors], schedule: Schedule) -> list[Scored]:
    """Score candidates as trials, on all documents."""
    entries = [Entry(ledger.trials.ask_formula(factors), DOCUMENTS) for factors in candidates]
    return ledger.score(entries) if schedule == "steady" else ledger.score_in_rounds(entries)


def num_read(folder: Path) -> Counter[str]:
    """Return how many documents each candidate read."""
    return Counter(read_measurements(folder)["candidate"])


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_clearly_worse_candidate_reads_the_first_look_and_its_value_is_estimated(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], tmp_path: Path, schedule: Schedule
) -> None:
    ledger = make_ledger(
        make_scorer(lambda factors, document: quality(factors) + offset(document)), panels=PANELS, racing=Racing()
    )
    scored = score(ledger, some, schedule)
    # By hand: 4 of 4 documents worse is a chance of 1/16, below 0.1
    assert [num_read(tmp_path)[candidate_key(factors)] for factors in some] == [12, *[4] * 7]
    assert [entry.is_dropped for entry in scored] == [False, *[True] * 7]
    trials = ledger.trials.study.trials
    assert [trial.state for trial in trials] == [TrialState.COMPLETE, *[TrialState.PRUNED] * 7]
    assert {trial.user_attrs["dropped"] for trial in trials[1:]} == {"after 4 of 12 documents; the value is estimated"}
    # By hand: all documents cost 0.65 in the mean, the four that were read 0.25; a dropped one is placed as if it had
    # lost as much more than the best on the documents that it was spared
    assert [entry.loss for entry in scored] == pytest.approx([quality(factors) + 0.65 for factors in some])
    assert [math.log(trial.values[0]) for trial in trials] == pytest.approx([entry.loss for entry in scored])
    assert ranked(scored) == scored[:1]
    assert ledger.progress.best == scored[0].perplexity
    assert ledger.progress.num_candidates == 8


def test_one_by_one_the_reference_is_the_best_that_is_complete_by_then(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors]
) -> None:
    # Worst first: nobody is worse than one before, so nobody is dropped; in rounds all but the last are
    scored = {}
    for schedule in SCHEDULES:
        scorer = make_scorer(lambda factors, document: quality(factors) + offset(document))
        ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
        scored[schedule] = [entry.is_dropped for entry in score(ledger, some[::-1], schedule)]
    assert scored == {"steady": [False] * 8, "generational": [*[True] * 7, False]}


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_formula_on_the_same_documents_is_raced_against_too(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], schedule: Schedule
) -> None:
    scorer = make_scorer(lambda factors, document: quality(factors) + offset(document))
    ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
    measure_formulas(ledger, some[:1], DOCUMENTS)
    assert [entry.is_dropped for entry in score(ledger, some[1:], schedule)] == [True] * 7


def test_nobody_whose_gradient_is_wanted_is_dropped(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors]
) -> None:
    scorer = make_scorer(
        lambda factors, document: quality(factors) + offset(document), gradient=lambda factors, document: [0.0] * 17
    )
    ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
    entries = [Entry(ledger.trials.ask_formula(factors), DOCUMENTS) for factors in some]
    assert not any(entry.is_dropped for entry in ledger.score(entries, with_gradient=True))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("capacity", [1, 7])
def test_without_a_race_everybody_reads_everything(
    make_scorer: MakeScorer,
    make_ledger: MakeLedger,
    some: list[RescaleFactors],
    tmp_path: Path,
    schedule: Schedule,
    capacity: int,
) -> None:
    scorer = make_scorer(
        lambda factors, document: quality(factors) + offset(document), capacity=capacity, rng=np.random.default_rng(0)
    )
    ledger = make_ledger(scorer, panels=PANELS, racing=None)
    scored = score(ledger, some, schedule)
    assert num_read(tmp_path) == Counter({candidate_key(factors): 12 for factors in some})
    assert {trial.state for trial in ledger.trials.study.trials} == {TrialState.COMPLETE}
    assert ranked(scored) == scored


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("capacity", [1, 9])
def test_no_candidate_that_was_dropped_is_a_result_of_the_search(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, schedule: Schedule, capacity: int
) -> None:
    scorer = make_scorer(
        lambda factors, document: 9 * quality(factors) + offset(document) + 0.3 * noise(factors, document),
        capacity=capacity,
        rng=np.random.default_rng(1),
    )
    ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
    sampler = LongRoPE2Sampler(space, SMALL, seed=0, schedule=schedule)
    found = evolve(ledger, sampler, schedule=schedule)
    trials = ledger.trials.searched(sampler)
    states = Counter(trial.state for trial in trials)
    assert states[TrialState.COMPLETE] + states[TrialState.PRUNED] == len(trials) == 16 + 3 * 8
    assert states[TrialState.PRUNED] > 10
    complete = {trial.user_attrs["candidate"] for trial in trials if trial.state == TrialState.COMPLETE}
    assert {candidate_key(entry.factors) for entry in found} == complete
    assert found[0].perplexity == ledger.trials.study.best_value
    parents = [trials[number].state for trial in trials for number in trial.user_attrs["parents"]]
    assert TrialState.COMPLETE in parents


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("capacity", [1, 5])
def test_the_best_is_never_dropped_where_everybody_finds_the_same_documents_hard(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], schedule: Schedule, capacity: int
) -> None:
    for seed in range(5):
        rng = np.random.default_rng(seed)
        shuffled = [some[place] for place in rng.permutation(8)]
        scorer = make_scorer(
            lambda factors, document: quality(factors) + 5 * offset(document) ** 2, capacity=capacity, rng=rng
        )
        ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
        assert ranked(score(ledger, shuffled, schedule))[0].factors == some[0]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_somebody_reads_everything_however_the_losses_scatter(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], schedule: Schedule
) -> None:
    def scattered(factors: RescaleFactors, document: str) -> float:
        return quality(factors) + offset(document) + math.exp(noise(factors, document))

    for racing in (Racing(), Racing(p_value=0.999)):
        ledger = make_ledger(make_scorer(scattered), panels=PANELS, racing=racing)
        scored = score(ledger, some, schedule)
        assert ranked(scored)
        # what is complete has its true loss
        for entry in ranked(scored):
            whole = math.fsum(scattered(entry.factors, document) for document in DOCUMENTS) / 12
            assert entry.loss == pytest.approx(whole, rel=1e-12)


def test_in_rounds_neither_order_nor_number_of_workers_changes_anything(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], tmp_path: Path
) -> None:
    def found(capacity: int, rng: np.random.Generator | None) -> tuple[object, ...]:
        scorer = make_scorer(
            lambda factors, document: quality(factors) + offset(document) + 0.2 * noise(factors, document),
            capacity=capacity,
            rng=rng,
        )
        ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
        scored = [score(ledger, part, "generational") for part in (some[4:], some[:4])]
        trials = [(trial.values, trial.state, trial.user_attrs) for trial in ledger.trials.study.trials]
        return scored, trials, ledger.measurements, ledger.spent, ledger.progress.best

    expected = found(1, None)
    num_documents = Counter(candidate for candidate, _ in expected[2])  # type: ignore[attr-defined]
    assert set(num_documents.values()) == {4, 8, 12}  # otherwise this would show less
    for seed, capacity in enumerate((1, 3, 8, 100)):
        assert found(capacity, np.random.default_rng(seed)) == expected


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_a_dropped_candidate_happens_to_have_on_other_documents_does_not_count(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], schedule: Schedule
) -> None:
    def loss(factors: RescaleFactors, document: str) -> float:
        wins = factors == some[1] and document in DOCUMENTS[8:]
        return quality(factors) + offset(document) - 5 * wins

    ledger = make_ledger(make_scorer(loss), panels=PANELS, racing=Racing())
    ledger.perplexities(some[1:2], DOCUMENTS[8:])
    _, other = score(ledger, some[:2], schedule)
    assert other.is_dropped
    assert other.loss == pytest.approx(0.9 + 0.65)
    attrs = ledger.trials.study.trials[1].user_attrs
    assert attrs["dropped"] == "after 4 of 12 documents; the value is estimated"


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_what_fails_is_dropped_as_soon_as_another_can_be_measured_and_has_no_value(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], tmp_path: Path, schedule: Schedule
) -> None:
    def failing(factors: RescaleFactors, document: str) -> float:
        return math.nan if factors == some[1] and document == "b" else quality(factors) + offset(document)

    ledger = make_ledger(make_scorer(failing), panels=PANELS, racing=Racing())
    scored = score(ledger, some[:2], schedule)
    assert num_read(tmp_path)[candidate_key(some[1])] == 4
    assert math.isnan(scored[1].loss)
    trial = ledger.trials.study.trials[1]
    assert (trial.state, trial.values, trial.user_attrs["failure"]) == (TrialState.FAIL, None, "cannot read b")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_where_everybody_fails_nobody_is_compared(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors], schedule: Schedule
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: math.nan), panels=PANELS, racing=Racing())
    assert ranked(score(ledger, some, schedule)) == []
    assert {trial.state for trial in ledger.trials.study.trials} == {TrialState.FAIL}


def test_a_race_on_other_documents_leaves_no_trial_and_costs_no_budget(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors]
) -> None:
    scorer = make_scorer(lambda factors, document: quality(factors) + offset(document), capacity=3)
    ledger = make_ledger(scorer, panels=Panels(documents=("z",), size=1), racing=Racing())
    raced = ledger.race(some, DOCUMENTS)
    assert [raced[candidate_key(factors)].is_dropped for factors in some] == [False, *[True] * 7]
    # By hand: the mean of all twelve documents; the others are placed by their distance from it on four
    assert raced[candidate_key(some[0])].loss == pytest.approx(0.8 + 0.65)
    assert raced[candidate_key(some[1])].loss == pytest.approx(0.9 + 0.65)
    assert ledger.trials.study.trials == []
    assert (ledger.spent, ledger.progress.num_candidates) == (0, 0)


def test_a_race_that_none_may_lose_is_none(
    make_scorer: MakeScorer, make_ledger: MakeLedger, some: list[RescaleFactors]
) -> None:
    scorer = make_scorer(lambda factors, document: quality(factors) + offset(document))
    ledger = make_ledger(scorer, panels=PANELS, racing=Racing())
    assert not any(entry.is_dropped for entry in ledger.race(some, DOCUMENTS, races=False).values())
    entries = [Entry(ledger.trials.ask_formula(factors), DOCUMENTS) for factors in some]
    assert not any(entry.is_dropped for entry in ledger.score_in_rounds(entries, races=False))
