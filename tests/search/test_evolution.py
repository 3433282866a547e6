"""The search's loop on losses that are plain functions of the factors."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import pytest
from optuna.trial import TrialState

from results.measurement import candidate_key
from results.store import read_measurements
from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors
from rope.methods import METHODS
from search.evolution import best_formula_of, evolve, measure_formulas
from search.ledger import GRADIENT_FORWARDS, Entry, Ledger, Scored, ranked
from search.monotone_space import MonotoneSpace
from search.objectives import Objectives
from search.panels import Panels
from search.parametrization import all_pairs
from search.samplers.gradient import GradientConfig, GradientSampler
from search.samplers.joint import GENERATION, METHOD, Schedule
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import Genome, SearchSpace
from workers.scorer import Scorer

MakeScorer = Callable[..., Scorer]
MakeLedger = Callable[..., Ledger]
Loss = Callable[[RescaleFactors, str], float]

SMALL = EvolutionConfig(population_size=16, num_parents=8, num_mutations=4, num_crossovers=4, num_generations=4)
DOCUMENTS = ("a", "b", "c")
HIDDEN = Genome(5, (900, 960, 1020, 1080, 1140, 1200, 1260, 1320, 1380, 1440, 1500))


def distance_to(optimum: RescaleFactors) -> Loss:
    """Squared distance of log factors: 0 at the optimum."""
    logs = np.log(optimum.values)
    return lambda factors, document: float(np.sum((np.log(factors.values) - logs) ** 2))


def formulas(space: SearchSpace) -> list[RescaleFactors]:
    windows = {"original_length": space.original_length, "target_length": space.target_length}
    return [METHODS[name](space.rotary_dim, space.base, **windows) for name in ("none", "linear", "yarn")]


def test_the_papers_budget_comes_close_to_a_hidden_optimum(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    loss = distance_to(space.factors(HIDDEN, method="hidden"))
    gains, errors = [], []
    for seed in range(3):
        ledger = make_ledger(make_scorer(loss), panels=Panels(documents=("a",), size=1))
        found = evolve(ledger, LongRoPE2Sampler(space, EvolutionConfig(), seed=seed))
        trials = ledger.trials.study.get_trials(deepcopy=False)
        initial = [math.log(trial.values[0]) for trial in trials if trial.user_attrs[GENERATION] == 0]
        best = loss(found[0].factors, "a")
        assert len(trials) == 1344
        assert len(initial) == 64
        assert best < min(initial) / 2
        gains.append(min(initial) / best)
        errors.append(math.sqrt(best / space.num_pairs))
    # The median, since evolution may settle at a neighbour of the hidden critical dimension: no operator changes it
    assert median(gains) > 100
    assert median(errors) < 0.02


@pytest.mark.parametrize("seed", [0, 1])
def test_capacity_and_completion_order_change_no_result(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, seed: int
) -> None:
    loss = distance_to(space.factors(HIDDEN, method="hidden"))

    def search(scorer: Scorer) -> tuple[list[Scored], list[tuple[object, ...]]]:
        ledger = make_ledger(scorer)
        scored = measure_formulas(ledger, formulas(space), DOCUMENTS)
        found = evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=seed))
        trials = ledger.trials.study.get_trials()
        return [*scored, *found], [(trial.params, trial.value, trial.user_attrs) for trial in trials]

    expected = search(make_scorer(loss))
    for shuffle_seed in (1, 2):
        assert search(make_scorer(loss, capacity=8, rng=np.random.default_rng(shuffle_seed))) == expected


def test_formulas_and_candidates_are_trials_of_one_study(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    ledger = make_ledger(make_scorer(distance_to(space.factors(HIDDEN, method="hidden"))))
    scored = measure_formulas(ledger, formulas(space), DOCUMENTS)
    found = evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0))
    trials = ledger.trials.study.get_trials()
    assert [trial.user_attrs[METHOD] for trial in trials] == ["none", "linear", "yarn"] + [LongRoPE2Sampler.method] * 48
    assert [entry.perplexity for entry in scored] == [trial.value for trial in trials[:3]]
    assert sorted(trial.values[0] for trial in trials[3:]) == [entry.perplexity for entry in found]
    assert ranked([*scored, *found])[0] == found[0]
    assert ledger.trials.study.best_value == found[0].perplexity


def test_every_measurement_is_stored_and_counted(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, tmp_path: Path
) -> None:
    ledger = make_ledger(make_scorer(distance_to(space.factors(HIDDEN, method="hidden")), capacity=3))
    found = evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0))
    rows = read_measurements(tmp_path)
    assert len(rows) == ledger.progress.num_documents == 48 * 3
    assert set(rows["candidate"]) == {candidate_key(entry.factors) for entry in found}
    assert not rows.duplicated(["candidate", "document"]).any()
    assert ledger.progress.num_candidates == 48
    assert ledger.progress.best == found[0].perplexity


def test_perplexities_of_other_documents_leave_no_trial(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    # By hand: the mean of 1, 2 and 6 is 3
    ledger = make_ledger(make_scorer(lambda factors, document: {"a": 1.0, "b": 2.0, "c": 6.0}[document]))
    one, other, _ = formulas(space)
    expected = pytest.approx(math.exp(3.0))
    assert ledger.perplexities([one, other], DOCUMENTS) == {
        candidate_key(one): expected,
        candidate_key(other): expected,
    }
    assert ledger.trials.study.get_trials() == []
    assert ledger.progress.num_candidates == 0


def test_failed_candidates_are_left_out_and_their_reasons_kept(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    distance = distance_to(space.factors(HIDDEN, method="hidden"))

    def loss(factors: RescaleFactors, document: str) -> float:
        return math.nan if factors.critical_dim == 4 and document == "b" else distance(factors, document)

    ledger = make_ledger(make_scorer(loss))
    found = evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0))
    failed = [trial for trial in ledger.trials.study.get_trials() if trial.state == TrialState.FAIL]
    assert failed
    assert {trial.params["critical_dim"] for trial in failed} == {4}
    assert {trial.user_attrs["failure"] for trial in failed} == {"cannot read b"}
    assert ledger.first_failure([entry.factors for entry in found]) is None
    assert len(found) == 48 - len(failed)
    assert 4 not in {entry.factors.critical_dim for entry in found}


def test_one_formula_that_can_be_measured_is_enough(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: 2.0 if factors.method == "yarn" else math.nan))
    scored = measure_formulas(ledger, formulas(space), DOCUMENTS)
    assert [math.isnan(entry.perplexity) for entry in scored] == [True, True, False]
    assert [entry.factors.method for entry in ranked(scored)] == ["yarn"]


def test_formulas_that_all_fail_stop_the_run_with_the_first_reason(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: math.nan))
    message = r"^at least one formula must be measurable, got 3 failures, the first: cannot read a\. Mend its cause"
    with pytest.raises(ValueError, match=message):
        best_formula_of(ledger, measure_formulas(ledger, formulas(space), DOCUMENTS))
    assert [trial.state for trial in ledger.trials.study.get_trials()] == [TrialState.FAIL] * 3


def test_formulas_whose_perplexity_is_beyond_all_numbers_stop_the_run_too(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: 1e6))
    with pytest.raises(ValueError, match=r"^at least one formula must be measurable, got 3 failures"):
        best_formula_of(ledger, measure_formulas(ledger, formulas(space), DOCUMENTS))


def test_candidates_that_all_fail_end_the_search_with_a_warning(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: math.nan))
    with caplog.at_level(logging.WARNING, logger="search.evolution"):
        assert evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0)) == []
    *failures, last = caplog.messages
    assert set(failures) == {"a longrope2-search candidate failed on 3 documents: cannot read a"}
    assert len(failures) == SMALL.population_size
    assert last == "the search ends early: no candidate of the generations before could be measured, so none can breed"


def test_a_space_without_anything_new_ends_the_search_with_a_warning_and_no_trial_left_running(
    tiny_space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: factors.values[-1] / 10))
    with caplog.at_level(logging.WARNING, logger="search.evolution"):
        found = evolve(ledger, LongRoPE2Sampler(tiny_space, SMALL, seed=0))
    assert len(found) == 10
    assert len(caplog.messages) == 1
    assert caplog.messages[0] == "the search ends early: the space holds no more than 10 candidates to begin with"
    assert {trial.state for trial in ledger.trials.study.get_trials()} == {TrialState.COMPLETE}


def test_an_exhausted_space_has_been_measured_to_its_last_candidate(
    tiny_space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    config = EvolutionConfig(population_size=4, num_parents=4, num_mutations=4, num_crossovers=0, num_generations=9)
    ledger = make_ledger(make_scorer(lambda factors, document: factors.values[-1] / 10))
    assert len(evolve(ledger, LongRoPE2Sampler(tiny_space, config, seed=0))) == 10
    assert not [trial for trial in ledger.trials.study.get_trials() if trial.state == TrialState.RUNNING]


def test_the_flat_start_at_the_theoretical_critical_dimension_is_the_formula_itself(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    # So a finalist can be a formula under another name: whoever measures both leaves one out
    formula = longrope2_factors(32, 1e4, original_length=256, target_length=2048).with_temperature(1.25)
    ledger = make_ledger(make_scorer(distance_to(formula)))
    found = evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0))
    same = [entry for entry in found if candidate_key(entry.factors) == candidate_key(formula)]
    assert same == found[:1]
    assert same[0].perplexity == 1.0


@pytest.mark.parametrize("schedule", ["steady", "generational"])
@pytest.mark.parametrize("capacity", [1, 8])
def test_equal_candidates_are_measured_once_and_both_trials_are_told(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, schedule: Schedule, capacity: int
) -> None:
    ledger = make_ledger(make_scorer(lambda factors, document: 1.0, capacity=capacity))
    formula = formulas(space)[0]
    sampler = LongRoPE2Sampler(space, SMALL, seed=0)
    asked = [ledger.trials.ask_formula(formula), ledger.trials.ask_candidate(sampler)]
    entries = [Entry(one._replace(factors=formula), DOCUMENTS) for one in asked]
    scored = ledger.score(entries) if schedule == "steady" else ledger.score_in_rounds(entries)
    assert [entry.perplexity for entry in scored] == [math.e, math.e]
    assert [trial.value for trial in ledger.trials.study.trials] == [math.e, math.e]
    assert ledger.progress.num_documents == 3
    assert ledger.progress.num_candidates == 1


def test_the_ranked_are_complete_and_measured_and_the_lowest_comes_first(space: SearchSpace) -> None:
    one, other, third = formulas(space)
    entries = [
        Scored(factors=one, losses=(math.nan,)),
        Scored(factors=one, losses=(1e6,)),  # a perplexity beyond all numbers
        Scored(factors=other, losses=(3.0, -1.5)),
        Scored(factors=third, losses=(1.0, 0.25)),
        Scored(factors=third, losses=(0.5,), is_dropped=True),
    ]
    assert ranked(entries) == [entries[3], entries[2]]
    assert [entries[2].loss, entries[2].perplexity] == [1.5, pytest.approx(math.e**3)]


@pytest.mark.parametrize("capacity", [1, 5, 40])
def test_the_steady_schedule_has_the_same_budget_and_no_barrier(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, capacity: int
) -> None:
    scorer = make_scorer(
        distance_to(space.factors(HIDDEN, method="hidden")), capacity=capacity, rng=np.random.default_rng(2)
    )
    ledger = make_ledger(scorer)
    sampler = LongRoPE2Sampler(space, SMALL, seed=0, schedule="steady")
    found = evolve(ledger, sampler, schedule="steady")
    trials = ledger.trials.study.get_trials()
    assert len(found) == len(trials) == 48
    assert {trial.state for trial in trials} == {TrialState.COMPLETE}
    starts = [trial.datetime_start for trial in trials]
    assert starts == sorted(starts)  # type: ignore[type-var]
    first = [trial.datetime_complete for trial in trials if trial.user_attrs[GENERATION] == 0]
    bred_early = [trial for trial in trials if trial.user_attrs[GENERATION] == 1 and trial.datetime_start < max(first)]  # type: ignore[operator, type-var]
    assert bool(bred_early) == (capacity > 1)


def test_two_objectives_are_the_perplexity_and_its_ratio_to_the_unscaled_models(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    # By hand: long (1 + 3) / 2 = 2, short (0.5 + 1.5) / 2 = 1, which is 0.75 above 0.25
    losses = {"a": 1.0, "b": 3.0, "s": 0.5, "t": 1.5}
    panels = Panels(documents=("a", "b"), size=2, always=("s", "t"))
    objectives = Objectives(names=("long", "short"), original=frozenset("st"), unscaled=0.25)
    scorer = make_scorer(lambda factors, document: losses[document])
    ledger = make_ledger(scorer, panels=panels, objectives=objectives)
    (scored, *_) = measure_formulas(ledger, formulas(space), panels.of(0))
    assert scored.losses == (2.0, 0.75)
    assert ledger.trials.study.trials[0].values == pytest.approx([math.exp(2.0), math.exp(0.75)])
    assert [trial.values for trial in ledger.trials.study.best_trials] == [ledger.trials.study.trials[0].values] * 3


def test_a_steady_search_asks_for_nobody_once_its_budget_is_spent(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, caplog: pytest.LogCaptureFixture
) -> None:
    ledger = make_ledger(make_scorer(distance_to(space.factors(HIDDEN, method="hidden"))))
    measure_formulas(ledger, formulas(space), DOCUMENTS)
    ledger.perplexities(formulas(space), ("h",))  # no search document: it costs the budget nothing
    assert ledger.spent == 9
    sampler = LongRoPE2Sampler(space, SMALL, seed=0, schedule="steady")
    with caplog.at_level(logging.INFO, logger="search.evolution"):
        # By hand: candidates are asked for at 9, 12, 15 and 18 forwards, none at 21
        assert len(evolve(ledger, sampler, schedule="steady", budget=20)) == 4
    assert ledger.spent == 21
    assert caplog.messages == ["the budget of 20 forwards is spent"]
    assert len(evolve(ledger, sampler, schedule="steady", budget=20)) == 4  # taken up again: nothing more
    assert len(evolve(ledger, sampler, schedule="steady", budget=22)) == 5


@pytest.mark.parametrize(("budget", "num"), [(1, 0), (9, 0), (10, 16), (57, 16), (58, 24), (1000, 48)])
def test_a_generational_search_ends_with_the_generation_in_which_its_budget_is_spent(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, budget: int, num: int
) -> None:
    # By hand: 9 forwards of formulas, 48 of the first generation, then 24 each
    scorer = make_scorer(distance_to(space.factors(HIDDEN, method="hidden")), capacity=5, rng=np.random.default_rng(0))
    ledger = make_ledger(scorer)
    measure_formulas(ledger, formulas(space), DOCUMENTS)
    for _ in range(2):
        assert len(evolve(ledger, LongRoPE2Sampler(space, SMALL, seed=0), budget=budget)) == num
        assert ledger.spent == 9 + 3 * num
        assert len(ledger.trials.study.trials) == 3 + num


def walk(num_steps: int) -> GradientSampler:
    start = METHODS["yarn"](32, 1e4, original_length=256, target_length=2048)
    walked = MonotoneSpace(template=start, parametrization=all_pairs(16), high=32.0)
    return GradientSampler(walked, GradientConfig(num_steps=num_steps), start=start)


def slope_to(optimum: RescaleFactors) -> Callable[[RescaleFactors, str], list[float]]:
    """Gradient of `distance_to`; the temperature has none."""
    logs = np.log(optimum.values)
    return lambda factors, document: [*(2 * (np.log(factors.values) - logs)), 0.0]


def test_a_gradient_costs_its_forwards_and_replaces_what_was_known_without_it(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger
) -> None:
    hidden = space.factors(HIDDEN, method="hidden")
    ledger = make_ledger(make_scorer(distance_to(hidden), gradient=slope_to(hidden)))
    sampler = walk(10)
    start = sampler.space.candidate(sampler.propose([]).params, method="yarn")
    ledger.perplexities([start], ("a",))
    assert ledger.spent == 1
    # By hand: a step is 3 documents at 3 forwards, so steps are asked for at 1, 9 and 18 forwards, none at 27
    assert GRADIENT_FORWARDS == 3
    evolve(ledger, sampler, schedule="steady", budget=20)
    assert ledger.spent == 27
    trials = ledger.trials.searched(sampler)
    assert [len(trial.user_attrs["gradient"]) for trial in trials] == [17] * 3
    # By hand: the gradient of the mean of three equal functions is that of one
    expected = slope_to(hidden)(start, "a")
    assert trials[0].user_attrs["gradient"] == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("schedule", "capacity"), [("steady", 1), ("steady", 8), ("generational", 8)])
def test_a_walk_over_the_same_documents_takes_a_step_at_least_with_every_second_candidate(
    space: SearchSpace, make_scorer: MakeScorer, make_ledger: MakeLedger, schedule: Schedule, capacity: int
) -> None:
    # With more workers than documents the next candidate is asked for before the gradient is known that would move it
    hidden = space.factors(HIDDEN, method="hidden")
    scorer = make_scorer(
        distance_to(hidden), gradient=slope_to(hidden), capacity=capacity, rng=np.random.default_rng(0)
    )
    ledger = make_ledger(scorer)
    sampler = walk(20)
    found = evolve(ledger, sampler, schedule=schedule)
    distinct = {candidate_key(entry.factors) for entry in found}
    assert len(found) == 20
    assert len(distinct) >= (10 if (schedule, capacity) == ("steady", 8) else 20)
    assert ledger.progress.num_documents == 3 * len(distinct)
    assert found[0].loss < 0.9 * next(entry.losses[0] for entry in ledger.trials.asked_before(sampler))
