"""Samplers of Optuna's by name: what plain Optuna would draw, a function of seed and trials, and nearer than chance."""

import json
import logging
import warnings
from collections.abc import Iterator
from copy import copy
from datetime import datetime
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.samplers import BaseSampler, CmaEsSampler, NSGAIISampler, QMCSampler, RandomSampler, TPESampler
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.monotone_space import TEMPERATURE, CoordinateSpace
from search.parametrization import all_pairs, spline
from search.samplers.joint import Proposal, Schedule, SpaceExhaustedError
from search.samplers.named import SAMPLERS, NamedConfig, NamedSampler
from search.study import Trials
from tests.search.telling import tell as tell_trial

SIZE = 6
CONFIG = NamedConfig(population_size=SIZE, num_candidates=20)
FAST = [name for name in SAMPLERS if name != "gp"]


def formula(name: str) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(1.1)


SPACE = CoordinateSpace(template=formula("yarn"), parametrization=spline(16, 5), high=16.0, temperatures=(0.8, 2.0))
HIDDEN = SPACE.factors_of(np.array([0.2, 0.5, 0.3, 0.7, 0.4, 1.5]), method="hidden")


def make_sampler(
    name: str,
    schedule: Schedule = "generational",
    *,
    seed: int = 0,
    size: int = SIZE,
    directions: tuple[str, ...] = ("minimize",),
) -> NamedSampler:
    config = NamedConfig(population_size=size, num_candidates=20)
    return NamedSampler(
        SPACE, config, name=name, start=formula("yarn"), seed=seed, schedule=schedule, directions=directions
    )


def factors_of(params: dict[str, float]) -> RescaleFactors:
    return SPACE.candidate(params, method="searched")


def loss(params: dict[str, float]) -> float:
    """Return the squared distance to hidden factors, in log lambda and temperature; 0 there."""
    factors = factors_of(params)
    distance = float(np.sum((np.log(factors.values) - np.log(HIDDEN.values)) ** 2))
    return distance + (factors.attention_temperature - HIDDEN.attention_temperature) ** 2


def opened(proposal: Proposal, number: int) -> FrozenTrial:
    """Return a proposal's trial as a storage would give it back."""
    trial = create_trial(
        state=TrialState.RUNNING,
        params=proposal.params,
        distributions=SPACE.distributions(),
        user_attrs=proposal.origin,
        system_attrs=json.loads(json.dumps(dict(proposal.system_attrs))),
    )
    trial.number = number
    return trial


def closed(trial: FrozenTrial, num_objectives: int = 1) -> FrozenTrial:
    """Return a trial as told; every ninth failed, every tenth pruned."""
    told = copy(trial)
    told.datetime_complete = datetime.now()
    if trial.number % 9 == 8:
        told.state = TrialState.FAIL
        return told
    told.state = TrialState.PRUNED if trial.number % 10 == 9 else TrialState.COMPLETE
    told.values = [loss(trial.params), trial.params[TEMPERATURE]][:num_objectives]
    return told


Step = tuple[list[FrozenTrial], Proposal]


def comparable(proposal: Proposal) -> Proposal:
    """Return a proposal without what cmaes leaves uninitialised in its pickle."""
    attrs = {key: value for key, value in proposal.system_attrs.items() if not key.startswith("cma:optimizer")}
    return proposal._replace(system_attrs=attrs)


def steady_run(sampler: NamedSampler, num: int, *, workers: int = 3, num_objectives: int = 1) -> list[Step]:
    """Ask whenever a worker is free; who finishes first is drawn. Return what was known before each answer, and it."""
    rng, trials, running, steps = np.random.default_rng(0), list[FrozenTrial](), list[int](), list[Step]()
    for number in range(num):
        if len(running) == workers:
            place = running.pop(int(rng.integers(workers)))
            trials[place] = closed(trials[place], num_objectives)
        steps.append((list(trials), sampler.propose(trials)))
        trials.append(opened(steps[-1][1], number))
        running.append(number)
    return steps


def generational_run(sampler: NamedSampler, num: int, *, size: int = SIZE, num_objectives: int = 1) -> list[Step]:
    """Ask and tell whole generations."""
    trials, steps = list[FrozenTrial](), list[Step]()
    for number in range(num):
        if number % size == 0:
            trials = [trial if trial.state.is_finished() else closed(trial, num_objectives) for trial in trials]
        steps.append((list(trials), sampler.propose(trials)))
        trials.append(opened(steps[-1][1], number))
    return steps


def run(sampler: NamedSampler, schedule: Schedule, num: int, *, num_objectives: int = 1) -> list[Step]:
    if schedule == "steady":
        return steady_run(sampler, num, num_objectives=num_objectives)
    return generational_run(sampler, num, num_objectives=num_objectives)


def seed_of(number: int) -> int:
    return int(np.random.default_rng([0, number, 0]).integers(2**32))


def plain(name: str, number: int) -> BaseSampler:
    """Return the sampler of Optuna's that the candidate is to be drawn by."""
    seed = seed_of(number)
    if name == "tpe":
        return TPESampler(seed=seed, constant_liar=True)
    if name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=SIZE)
    if name == "optuna-cmaes":
        return CmaEsSampler(seed=seed, popsize=SIZE, x0=SPACE.to_params(formula("yarn")))
    return RandomSampler(seed=seed)


@pytest.mark.parametrize("name", ["random", "tpe", "optuna-cmaes"])
def test_a_study_of_optuna_s_own_draws_the_same(name: str) -> None:
    study = optuna.create_study()
    study.enqueue_trial(SPACE.to_params(formula("yarn")))
    sampler = make_sampler(name, "steady")
    trials: list[FrozenTrial] = []
    for number in range(5 * SIZE):
        study.sampler = plain(name, number)
        asked = study.ask(SPACE.distributions())
        proposal = sampler.propose(trials)
        assert proposal.params == asked.params
        trials.append(closed(opened(proposal, number)))
        told = trials[-1]
        study.tell(asked, told.value if told.state == TrialState.COMPLETE else None, state=told.state)


@pytest.mark.parametrize("name", ["tpe", "nsga2"])
def test_a_study_of_optuna_s_own_that_holds_the_same_trials_draws_the_same(name: str) -> None:
    steps = steady_run(make_sampler(name, "steady"), 24)
    assert sum(trial.state == TrialState.RUNNING for trial in steps[-1][0]) == 2
    for number, (known, proposal) in list(enumerate(steps))[1:]:
        study = optuna.create_study(sampler=plain(name, number))
        study.add_trials(known)
        assert proposal.params == study.ask(SPACE.distributions()).params


def test_qmc_draws_the_points_that_optuna_s_sampler_does() -> None:
    study = optuna.create_study(sampler=QMCSampler(scramble=True, seed=0))
    for _ in range(12):  # the first one is drawn at random there and is the start here
        study.tell(study.ask(SPACE.distributions()), 1.0)
    found = [proposal.params for _, proposal in generational_run(make_sampler("qmc"), 12)]
    for params, trial in zip(found[1:], study.trials[1:], strict=True):
        assert params == trial.params


def best_losses(name: str, num: int) -> list[float]:
    """Return the best loss of two runs, the start left out."""
    runs = [steady_run(make_sampler(name, "steady", seed=seed, size=10), num, workers=1) for seed in (0, 1)]
    return [min(loss(proposal.params) for _, proposal in steps[1:]) for steps in runs]


@pytest.mark.parametrize(
    ("name", "num"), [("tpe", 120), ("nsga2", 120), ("nsga3", 120), ("optuna-cmaes", 120), ("gp", 40)]
)
def test_what_learns_comes_nearer_to_a_hidden_optimum_than_chance(name: str, num: int) -> None:
    assert np.mean(best_losses(name, num)) < np.mean(best_losses("random", num)) / 2


@pytest.mark.parametrize("schedule", ["steady", "generational"])
@pytest.mark.parametrize("name", FAST)
def test_a_new_sampler_goes_on_as_the_old_one_after_any_number_of_trials(name: str, schedule: Schedule) -> None:
    for known, proposal in run(make_sampler(name, schedule), schedule, 32):
        assert comparable(make_sampler(name, schedule).propose(known)) == comparable(proposal)


@pytest.mark.parametrize("schedule", ["steady", "generational"])
def test_a_new_sampler_goes_on_as_the_old_one_where_gaussian_processes_are_asked(schedule: Schedule) -> None:
    for known, proposal in run(make_sampler("gp", schedule), schedule, 16)[11::2]:
        assert make_sampler("gp", schedule).propose(known) == proposal


@pytest.mark.parametrize("schedule", ["steady", "generational"])
@pytest.mark.parametrize("name", [name for name in FAST if name != "optuna-cmaes"])
def test_with_two_objectives_too(name: str, schedule: Schedule) -> None:
    two = ("minimize", "maximize")
    for known, proposal in run(make_sampler(name, schedule, directions=two), schedule, 24, num_objectives=2)[::3]:
        assert make_sampler(name, schedule, directions=two).propose(known) == proposal


def test_gaussian_processes_serve_two_objectives() -> None:
    sampler = make_sampler("gp", "steady", directions=("minimize", "minimize"))
    known, proposal = steady_run(sampler, 14, num_objectives=2)[-1]
    fresh = make_sampler("gp", "steady", directions=("minimize", "minimize"))
    assert fresh.propose(known) == proposal


@pytest.mark.parametrize("schedule", ["steady", "generational"])
@pytest.mark.parametrize("name", list(SAMPLERS))
def test_candidates_begin_with_the_start_lie_in_the_space_and_are_monotone_and_distinct(
    name: str, schedule: Schedule
) -> None:
    found = [proposal.params for _, proposal in run(make_sampler(name, schedule), schedule, 16)]
    assert found[0] == SPACE.to_params(formula("yarn"))
    for params in found:
        assert list(params) == list(SPACE.distributions())
        for key, distribution in SPACE.distributions().items():
            assert type(params[key]) is float
            assert distribution._contains(params[key])
        values = factors_of(params).values
        assert np.all(np.diff(values) >= 0)
        assert 1 <= values[0] <= values[-1] <= 16
    assert len({factors_of(params) for params in found}) == 16


def test_a_child_of_nsga_s_that_equals_its_parent_is_drawn_again() -> None:
    names = list(SPACE.distributions())
    steps = generational_run(make_sampler("nsga2", size=4), 60, size=4)
    found = [tuple(proposal.params[name] for name in names) for _, proposal in steps]
    assert len(set(found)) == 60
    # By chance a tenth is not crossed, and of these (1 - 1 / 6)^6, a third, not mutated; crossing twins makes more
    plain_children = 0
    for number, (known, _) in list(enumerate(steps))[8:]:
        study = optuna.create_study(sampler=NSGAIISampler(seed=seed_of(number), population_size=4))
        study.add_trials(known)
        child = study.ask(SPACE.distributions()).params
        plain_children += tuple(child[name] for name in names) in found[:number]
    assert plain_children > 0


@pytest.mark.parametrize("name", ["tpe", "nsga2", "optuna-cmaes"])
def test_in_the_generational_schedule_who_finished_first_in_its_generation_changes_nothing(name: str) -> None:
    known, proposal = generational_run(make_sampler(name), 28)[-1]
    told = [trial if trial.state.is_finished() else closed(trial) for trial in known]
    assert told != known
    assert comparable(make_sampler(name).propose(told)) == comparable(proposal)


@pytest.mark.parametrize("name", ["tpe", "nsga2", "optuna-cmaes"])
def test_a_sampler_that_has_seen_other_trials_answers_as_a_new_one(name: str) -> None:
    one = steady_run(make_sampler(name, "steady", seed=1), 26)[-1][0]
    other = steady_run(make_sampler(name, "steady", seed=2), 20)[-1][0]
    sampler = make_sampler(name, "steady")
    answers = [comparable(sampler.propose(trials)) for trials in (one, other, one, one)]
    fresh = [comparable(make_sampler(name, "steady").propose(trials)) for trials in (one, other, one, one)]
    assert answers == fresh


@pytest.mark.parametrize("name", ["random", "qmc", "tpe"])
def test_another_seed_means_other_candidates(name: str) -> None:
    one, other = (generational_run(make_sampler(name, seed=seed), 2)[1][1].params for seed in (0, 1))
    assert one != other


@pytest.mark.parametrize("name", ["tpe", "nsga2", "optuna-cmaes"])
def test_a_search_is_taken_up_from_its_journal(name: str, tmp_path: Path) -> None:
    journal = str(tmp_path / "journal")
    trials = Trials(optuna.create_study(study_name="s", storage=JournalStorage(JournalFileBackend(journal))))
    trials.ask_formula(formula("yarn"))
    sampler = make_sampler(name)
    for _ in range(4):
        generation = [trials.ask_candidate(sampler) for _ in range(SIZE)]
        for asked in generation:
            tell_trial(trials, asked, None if asked.trial == 4 else float(asked.trial))
    again = Trials(optuna.load_study(study_name="s", storage=JournalStorage(JournalFileBackend(journal))))
    fresh = make_sampler(name)
    resumed = fresh.propose(again.searched(fresh))
    assert comparable(resumed) == comparable(sampler.propose(trials.searched(sampler)))
    assert asked.factors.method == f"{name}-search"


def test_sixteen_pairs_one_by_one_are_a_space_too() -> None:
    space = CoordinateSpace(template=formula("yarn"), parametrization=all_pairs(16), high=16.0, temperatures=(1.1, 1.1))
    sampler = NamedSampler(space, CONFIG, name="optuna-cmaes", start=formula("yarn"), seed=0)
    np.testing.assert_allclose(
        space.candidate(sampler.propose([]).params, method="a").values, formula("yarn").values, rtol=1e-5
    )


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """Optuna's log as a user would see it who wants all of it."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.enable_propagation()
    optuna.logging.set_verbosity(optuna.logging.DEBUG)
    yield caplog
    assert optuna.logging.get_verbosity() == logging.DEBUG
    optuna.logging.set_verbosity(verbosity)
    optuna.logging.disable_propagation()


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_what_optuna_says_of_itself_does_not_reach_the_log(name: str, log: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        generational_run(make_sampler(name), 14)
    assert [str(warning.message) for warning in heard] == []
    assert log.messages == []


def test_generations_are_of_the_population_s_size_and_the_last_has_what_is_left() -> None:
    assert make_sampler("tpe").generation_sizes == [6, 6, 6, 2]
    config = NamedConfig(population_size=8, num_candidates=24)
    sampler = NamedSampler(SPACE, config, name="tpe", start=formula("yarn"), seed=0)
    assert sampler.generation_sizes == [8, 8, 8]
    origins = [proposal.origin for _, proposal in generational_run(sampler, 9, size=8)]
    assert [origin["generation"] for origin in origins] == [0] * 8 + [1]
    assert [origin["operator"] for origin in origins] == ["start"] + ["tpe"] * 8


def test_a_name_that_is_unknown_is_refused_with_the_known_ones() -> None:
    known = "tpe, random, qmc, gp, nsga2, nsga3, optuna-cmaes"
    with pytest.raises(ValueError, match=rf"^the sampler must be one of {known}, got 'tpo'\. Choose one of these\.$"):
        make_sampler("tpo")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("grid", "which needs a list of values for every coordinate"),
        ("brute-force", "which counts all values, and coordinates have no step"),
        ("partial-fixed", "which holds values for another sampler and draws none itself"),
    ],
)
def test_a_sampler_that_cannot_serve_is_refused_with_the_reason(name: str, reason: str) -> None:
    with pytest.raises(ValueError, match=rf"one of tpe, .*, got '{name}', {reason}\. Choose one of these\.$"):
        make_sampler(name)


def test_two_objectives_are_refused_where_one_is_all_that_a_sampler_knows() -> None:
    message = (
        r"^the sampler optuna-cmaes must have one objective, got 2\. Choose one of tpe, random, qmc, gp, nsga2, nsga3"
    )
    with pytest.raises(ValueError, match=message):
        make_sampler("optuna-cmaes", directions=("minimize", "minimize"))


def test_a_space_of_one_point_is_exhausted_by_the_start() -> None:
    flat = CoordinateSpace(
        template=formula("yarn"), parametrization=spline(16, 5), high=1.0 + 1e-9, temperatures=(1.1, 1.1)
    )
    sampler = NamedSampler(flat, CONFIG, name="random", start=formula("none"), seed=0)
    start = create_trial(
        state=TrialState.RUNNING, params=sampler.propose([]).params, distributions=flat.distributions()
    )
    with pytest.raises(SpaceExhaustedError, match="no new candidate in 20 tries of the sampler random"):
        sampler.propose([start])


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("population_size", 3, "optuna.population_size must be at least 4, got 3"),
        ("num_candidates", 0, "optuna.num_candidates must be at least 1, got 0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(field: str, value: int, message: str) -> None:
    options = {field: value}
    with pytest.raises(ValueError, match=message):
        NamedConfig(**options)
