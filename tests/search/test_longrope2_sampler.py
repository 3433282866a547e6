"""The sampler: the paper's budget, and candidates that follow from the seed and the finished trials alone."""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from rope.linear import linear_factors
from search.samplers.joint import GENERATION, SpaceExhaustedError
from search.samplers.longrope2 import EvolutionConfig, LongRoPE2Sampler
from search.space import SearchSpace
from search.study import Asked, Trials
from tests.search.telling import tell

SMALL = EvolutionConfig(population_size=12, num_parents=6, num_mutations=3, num_crossovers=3, num_generations=4)
NUM_TRIALS = 12 + 4 * 6
Order = Callable[[int], Sequence[int]]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def value_of(asked: Asked) -> float:
    """A loss that depends on the factors alone and that most candidates do not share."""
    return sum(abs(math.log(value) - 0.17 * pair) for pair, value in enumerate(asked.factors.values))


def run(
    space: SearchSpace,
    *,
    study: optuna.Study,
    seed: int = 0,
    config: EvolutionConfig = SMALL,
    order: Order = range,
    fails: Callable[[int], bool] = lambda number: False,
) -> list[FrozenTrial]:
    """Ask and tell every generation; the trials of one are told in the given order."""
    trials, sampler = Trials(study), LongRoPE2Sampler(space, config, seed=seed)
    for size in sampler.generation_sizes:
        asked = [trials.ask_candidate(sampler) for _ in range(size)]
        for place in order(size):
            tell(trials, asked[place], None if fails(asked[place].trial) else value_of(asked[place]))
    return study.get_trials()


def candidates(trials: Sequence[FrozenTrial]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    return [(trial.params, trial.user_attrs) for trial in trials if GENERATION in trial.user_attrs]


def test_the_defaults_measure_as_many_candidates_as_the_paper(space: SearchSpace) -> None:
    sampler = LongRoPE2Sampler(space, EvolutionConfig(), seed=0)
    assert sampler.generation_sizes == [64] + [32] * 40
    assert sum(sampler.generation_sizes) == 64 + 40 * 32 == 1344


def test_every_generation_has_its_mutants_and_crossovers(space: SearchSpace) -> None:
    origins = [origin for _, origin in candidates(run(space, study=optuna.create_study()))]
    assert [origin["generation"] for origin in origins] == [0] * 12 + [g for g in range(1, 5) for _ in range(6)]
    operators = [origin["operator"] for origin in origins]
    assert operators[:12] == ["initial"] * 12
    for start in range(12, NUM_TRIALS, 6):
        assert operators[start : start + 3] == ["mutation"] * 3
        # A crossover of parents that give nothing new and monotone is replaced by a mutant
        assert set(operators[start + 3 : start + 6]) <= {"crossover", "mutation"}
    assert operators.count("crossover") >= 6
    num_parents = {"initial": 0, "mutation": 1, "crossover": 2}
    assert all(len(set(origin["parents"])) == num_parents[origin["operator"]] for origin in origins)


def test_no_candidate_is_tried_twice(space: SearchSpace) -> None:
    trials = run(space, study=optuna.create_study())
    assert len({space.from_params(trial.params) for trial in trials}) == len(trials) == NUM_TRIALS


def test_the_order_in_which_trials_are_told_changes_nothing(space: SearchSpace) -> None:
    rng = np.random.default_rng(7)
    shuffled: Order = lambda size: rng.permutation(size).tolist()  # noqa: E731
    expected = candidates(run(space, study=optuna.create_study()))
    assert candidates(run(space, study=optuna.create_study(), order=lambda size: range(size)[::-1])) == expected
    assert candidates(run(space, study=optuna.create_study(), order=shuffled)) == expected


def test_another_seed_tries_other_candidates(space: SearchSpace) -> None:
    one, other = (candidates(run(space, study=optuna.create_study(), seed=seed)) for seed in (0, 1))
    assert one[:5] == other[:5]  # the flat starts at the scale
    assert one[5:] != other[5:]


@pytest.mark.parametrize("num_before", [4, 8, 15])
def test_a_new_sampler_over_the_same_storage_continues_identically(
    make_space: Callable[..., SearchSpace], tmp_path: Path, num_before: int
) -> None:
    space = make_space(rotary_dim=16, critical_dims=(3, 4))
    config = EvolutionConfig(population_size=8, num_parents=4, num_mutations=2, num_crossovers=2, num_generations=3)
    expected = candidates(run(space, study=optuna.create_study(), config=config))

    def open_storage() -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(tmp_path / "study.journal")))

    optuna.create_study(study_name="interrupted", storage=open_storage())
    for num in (num_before, 20 - num_before):
        study = optuna.load_study(study_name="interrupted", storage=open_storage())
        trials, sampler = Trials(study), LongRoPE2Sampler(space, config, seed=0)
        for _ in range(num):
            asked = trials.ask_candidate(sampler)
            tell(trials, asked, value_of(asked))
    assert candidates(study.get_trials()) == expected


def test_parents_are_the_best_of_earlier_generations(space: SearchSpace) -> None:
    trials = run(space, study=optuna.create_study())
    for trial in trials:
        generation = trial.user_attrs[GENERATION]
        earlier = [other for other in trials if other.user_attrs[GENERATION] < generation]
        best = sorted(earlier, key=lambda other: other.values[0])[: SMALL.num_parents]
        assert set(trial.user_attrs["parents"]) <= {other.number for other in best}


def test_every_parent_allowed_breeds_sooner_or_later(space: SearchSpace) -> None:
    config = EvolutionConfig(population_size=12, num_parents=6, num_mutations=40, num_crossovers=40, num_generations=1)
    trials = run(space, study=optuna.create_study(), config=config)
    best = sorted(trials[:12], key=lambda trial: trial.values[0])[:6]
    for operator in ("mutation", "crossover"):
        origins = [trial.user_attrs for trial in trials if trial.user_attrs["operator"] == operator]
        assert {parent for origin in origins for parent in origin["parents"]} == {trial.number for trial in best}


def test_failed_trials_never_breed_and_keep_their_place(space: SearchSpace) -> None:
    trials = run(space, study=optuna.create_study(), fails=lambda number: number % 3 != 1)
    failed = {trial.number for trial in trials if trial.state == TrialState.FAIL}
    parents = {parent for trial in trials for parent in trial.user_attrs["parents"]}
    assert len(failed) == NUM_TRIALS * 2 / 3
    assert parents
    assert not parents & failed
    assert len({space.from_params(trial.params) for trial in trials}) == NUM_TRIALS


def test_one_survivor_breeds_mutants_in_the_place_of_crossovers(space: SearchSpace) -> None:
    trials = run(space, study=optuna.create_study(), fails=lambda number: number != 4)
    bred = [trial.user_attrs for trial in trials[12:]]
    assert all((origin["operator"], origin["parents"]) == ("mutation", [4]) for origin in bred)


def test_a_generation_of_failures_ends_the_search_with_its_reason(space: SearchSpace) -> None:
    with pytest.raises(SpaceExhaustedError, match=r"^no candidate of the generations before could be measured"):
        run(space, study=optuna.create_study(), fails=lambda number: True)


def test_an_exhausted_space_ends_the_search_with_its_reason(tiny_space: SearchSpace) -> None:
    study = optuna.create_study()
    config = EvolutionConfig(population_size=4, num_parents=4, num_mutations=3, num_crossovers=3, num_generations=4)
    with pytest.raises(SpaceExhaustedError, match=r"^no new candidate in 4 x 100 tries$"):
        run(tiny_space, study=study, config=config)
    found = [trial for trial in study.get_trials() if GENERATION in trial.user_attrs]
    assert len({tiny_space.from_params(trial.params) for trial in found}) == len(found) == 10


def test_a_space_smaller_than_the_population_ends_the_search_with_its_reason(tiny_space: SearchSpace) -> None:
    message = r"^the space holds no more than 10 candidates to begin with$"
    with pytest.raises(SpaceExhaustedError, match=message):
        run(tiny_space, study=optuna.create_study())


def test_formulas_in_the_same_study_change_no_candidate(space: SearchSpace) -> None:
    expected = [trial.params for trial in run(space, study=optuna.create_study())]
    linear = linear_factors(32, 1e4, original_length=256, target_length=2048)
    trials, sampler = Trials(optuna.create_study()), LongRoPE2Sampler(space, SMALL, seed=0)
    for number in range(NUM_TRIALS):
        if number % 7 == 0:
            tell(trials, trials.ask_formula(linear.with_temperature(1 + number / 100)), 0.0)
        asked = trials.ask_candidate(sampler)
        tell(trials, asked, value_of(asked))
    assert [params for params, _ in candidates(trials.study.get_trials())] == expected


def test_a_parameter_outside_the_space_is_refused(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=LongRoPE2Sampler(space, SMALL, seed=0))
    message = r"^every parameter must belong to the search space, got 'learning_rate'. Sample it elsewhere.$"
    trial = study.ask()
    with pytest.raises(ValueError, match=message):
        trial.suggest_float("learning_rate", 0.0, 1.0)


def test_a_trial_that_died_while_optuna_asked_for_it_does_not_stop_the_search(space: SearchSpace) -> None:
    study = optuna.create_study(sampler=LongRoPE2Sampler(space, SMALL, seed=0))
    died = study.ask()
    died.suggest_int("critical_dim", 3, 7)  # the first parameter was written, the others never
    study.tell(died, state=TrialState.FAIL)
    trials = run(space, study=study)
    assert len(candidates(trials)) == 1 + NUM_TRIALS


def test_optuna_s_own_ask_gives_the_same_candidates(space: SearchSpace) -> None:
    expected = [trial.params for trial in run(space, study=optuna.create_study())]
    study = optuna.create_study(sampler=LongRoPE2Sampler(space, SMALL, seed=0))
    for size in LongRoPE2Sampler(space, SMALL, seed=0).generation_sizes:
        trials = [study.ask(space.distributions()) for _ in range(size)]
        for trial in trials:
            factors = space.candidate(trial.params, method="search")
            study.tell(trial, math.exp(value_of(Asked(trial.number, factors, False))))
    assert [trial.params for trial in study.trials] == expected


def steady(space: SearchSpace, study: optuna.Study, *, workers: int, num: int = NUM_TRIALS) -> list[FrozenTrial]:
    """Ask whenever a worker is free; who finishes first is drawn."""
    trials, sampler = Trials(study), LongRoPE2Sampler(space, SMALL, seed=0, schedule="steady")
    rng = np.random.default_rng(0)
    running: list[Asked] = []
    for _ in range(num):
        if len(running) == workers:
            asked = running.pop(int(rng.integers(workers)))
            tell(trials, asked, value_of(asked))
        running.append(trials.ask_candidate(sampler))
    return study.get_trials()


def test_the_steady_schedule_breeds_from_the_best_of_all_that_is_finished(space: SearchSpace) -> None:
    trials = steady(space, optuna.create_study(), workers=5)
    bred = [trial for trial in trials if trial.user_attrs["parents"]]
    assert len(bred) == NUM_TRIALS - SMALL.population_size
    for trial in bred:
        started = trial.datetime_start
        assert started is not None
        finished = [other for other in trials if other.datetime_complete and other.datetime_complete <= started]
        best = sorted(finished, key=lambda other: other.values[0])[: SMALL.num_parents]
        assert set(trial.user_attrs["parents"]) <= {other.number for other in best}
    same_generation = [
        parent
        for trial in bred
        for parent in trial.user_attrs["parents"]
        if trials[parent].user_attrs[GENERATION] == trial.user_attrs[GENERATION]
    ]
    assert same_generation  # no barrier: children breed beside their siblings


def test_more_workers_than_the_first_population_breed_from_what_is_being_measured(space: SearchSpace) -> None:
    trials = steady(space, optuna.create_study(), workers=100)
    assert {trial.state for trial in trials} == {TrialState.RUNNING}
    assert len({space.from_params(trial.params) for trial in trials}) == NUM_TRIALS


def run_on_panels(
    space: SearchSpace, *, order: Order = range, fails: Callable[[int], bool] = lambda number: False
) -> list[tuple[list[FrozenTrial], FrozenTrial]]:
    """Ask and tell generations that differ in their documents; return what was known before each trial, and it."""
    trials = Trials(optuna.create_study())
    sampler = LongRoPE2Sampler(space, SMALL, seed=0, remeasures_parents=True)
    steps = []
    for generation, size in enumerate(sampler.generation_sizes):
        asked = []
        for _ in range(size):
            known = list(trials.searched(sampler))
            asked.append(trials.ask_candidate(sampler))
            steps.append((known, trials.searched(sampler)[-1]))
        for place in order(size):
            value = panel_value(asked[place], generation)
            tell(trials, asked[place], None if fails(asked[place].trial) else value)
    told = trials.searched(sampler)
    return [(known, told[trial.number]) for known, trial in steps]


def panel_value(asked: Asked, generation: int) -> float:
    """A loss that later documents make larger, and that weighs other pairs in every generation."""
    weights = np.random.default_rng(generation).uniform(0.5, 1.5, len(asked.factors.values))
    return generation + float(weights @ np.abs(np.log(asked.factors.values) - 0.17 * np.arange(len(weights))))


def by_generation(trials: Sequence[FrozenTrial]) -> list[list[FrozenTrial]]:
    return [[trial for trial in trials if trial.user_attrs[GENERATION] == number] for number in range(5)]


def test_with_fresh_documents_each_generation_begins_with_the_best_of_the_one_before(space: SearchSpace) -> None:
    generations = by_generation([trial for _, trial in run_on_panels(space)])
    assert [len(generation) for generation in generations] == [12] + [6 + 6] * 4
    for earlier, later in pairwise(generations):
        best = sorted(earlier, key=lambda trial: trial.values[0])[:6]
        assert [trial.params for trial in later[:6]] == [trial.params for trial in best]
        assert [trial.user_attrs["parents"] for trial in later[:6]] == [[trial.number] for trial in best]
        assert {trial.user_attrs["operator"] for trial in later[:6]} == {"re-measured"}
        assert {trial.user_attrs["operator"] for trial in later[6:9]} == {"mutation"}


def test_with_fresh_documents_parents_come_from_the_generation_before_alone(space: SearchSpace) -> None:
    trials = [trial for _, trial in run_on_panels(space)]
    for earlier, later in pairwise(by_generation(trials)):
        best = {trial.number for trial in sorted(earlier, key=lambda trial: trial.values[0])[:6]}
        assert {parent for trial in later for parent in trial.user_attrs["parents"]} <= best
    bred = [space.from_params(trial.params) for trial in trials if trial.user_attrs["operator"] != "re-measured"]
    assert len(set(bred)) == len(bred) == NUM_TRIALS  # what is bred is new, to generations long ago too


def test_with_fresh_documents_state_needs_the_trials_alone(space: SearchSpace) -> None:
    fails = lambda number: number % 5 == 2  # noqa: E731
    steps = run_on_panels(space, fails=fails)
    for known, trial in steps:
        proposal = LongRoPE2Sampler(space, SMALL, seed=0, remeasures_parents=True).propose(known)
        assert (proposal.params, proposal.origin) == (
            trial.params,
            {key: trial.user_attrs[key] for key in proposal.origin},
        )
    backwards = run_on_panels(space, fails=fails, order=lambda size: range(size)[::-1])
    assert candidates([trial for _, trial in backwards]) == [(trial.params, {**trial.user_attrs}) for _, trial in steps]


def test_with_fresh_documents_mutants_take_the_places_of_parents_that_are_missing(space: SearchSpace) -> None:
    # Two of the first population survive, so that four of the six places are free
    generations = by_generation([trial for _, trial in run_on_panels(space, fails=lambda number: 2 <= number < 12)])
    operators = [trial.user_attrs["operator"] for trial in generations[1]]
    assert operators[:9] == ["re-measured"] * 2 + ["mutation"] * 7
    assert len({space.from_params(trial.params) for trial in generations[1]}) == 12
