"""CMA-ES over monotone factors: points are formulas and back, every candidate is monotone, state needs only storage."""

import math
from pathlib import Path

import numpy as np
import optuna
import pytest
from optuna.storages.journal import JournalFileBackend, JournalStorage

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.monotone_space import TEMPERATURE, MonotoneSpace
from search.samplers.cma import CmaConfig, CmaSampler, from_point, to_point
from search.samplers.joint import GENERATION, Schedule
from search.space import lambda_name
from search.study import Asked, Trials
from tests.search.telling import tell

CONFIG = CmaConfig(population_size=6, num_generations=8)


def formula(name: str) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(1.1)


def make_sampler(seed: int = 0, schedule: Schedule = "generational") -> CmaSampler:
    space = MonotoneSpace(template=formula("yarn"), high=16.0)
    return CmaSampler(space, CONFIG, start=formula("yarn"), seed=seed, schedule=schedule)


def loss(factors: RescaleFactors) -> float:
    """Return the distance to a hidden list with a temperature; 0 there."""
    hidden = np.log(formula("longrope2").values)
    return float(np.sum((np.log(factors.values) - hidden) ** 2) + (factors.attention_temperature - 1.25) ** 2)


def run(study: optuna.Study, sampler: CmaSampler, num: int, *, reverse: bool = False) -> list[RescaleFactors]:
    """Ask and tell whole generations, told in either order; return all candidates in the order asked."""
    trials, found = Trials(study), []
    for _ in range(num // CONFIG.population_size):
        generation = [trials.ask_candidate(sampler) for _ in range(CONFIG.population_size)]
        for asked in reversed(generation) if reverse else generation:
            tell(trials, asked, loss(asked.factors))
        found += [asked.factors for asked in generation]
    return found


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn", "llama3", "longrope2"])
def test_a_formula_is_a_point_of_the_space(name: str) -> None:
    values, temperature = from_point(to_point(formula(name)))
    np.testing.assert_allclose(values, formula(name).values, rtol=1e-12)  # square roots of differences of logarithms
    assert temperature == 1.1


def test_a_point_worked_out_by_hand() -> None:
    values, temperature = from_point(np.array([0.0, math.sqrt(math.log(2)), 0.0, -math.sqrt(math.log(3)), 1.2]))
    np.testing.assert_allclose(values, [1, 2, 2, 6], rtol=1e-12)
    assert temperature == 1.2


def test_factors_that_are_below_one_or_fall_are_raised() -> None:
    published = formula("none").with_values([0.5, 1.0, 3.0, 2.0] * 4, method="published")
    values, _ = from_point(to_point(published))
    np.testing.assert_allclose(values[:4], [1, 1, 3, 3], rtol=1e-12)


def test_every_candidate_is_monotone_inside_the_bounds_and_exactly_what_the_study_holds() -> None:
    study = optuna.create_study()
    found = run(study, make_sampler(), 24)
    for factors, trial in zip(found, study.trials, strict=True):
        assert np.all(np.diff(factors.values) >= 0)
        assert 1 <= factors.values[0] <= factors.values[-1] <= 16
        assert factors.values == tuple(trial.params[lambda_name(pair)] for pair in range(16))
        assert factors.attention_temperature == trial.params[TEMPERATURE]


def test_the_optimiser_comes_near_a_hidden_optimum_from_the_best_formula() -> None:
    found = run(optuna.create_study(), make_sampler(), 300)
    assert min(map(loss, found)) < loss(formula("yarn")) / 5


def test_the_order_in_which_a_generation_is_told_changes_nothing() -> None:
    forward = run(optuna.create_study(), make_sampler(), 24)
    assert run(optuna.create_study(), make_sampler(), 24, reverse=True) == forward


def test_another_seed_means_other_candidates() -> None:
    assert run(optuna.create_study(), make_sampler(1), 6) != run(optuna.create_study(), make_sampler(0), 6)


def test_a_new_sampler_over_the_same_storage_goes_on_as_if_nothing_had_happened(tmp_path: Path) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    run(optuna.create_study(study_name="s", storage=storage), make_sampler(), 12)
    again = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    resumed = run(optuna.load_study(study_name="s", storage=again), make_sampler(), 12)
    assert resumed == run(optuna.create_study(), make_sampler(), 24)[12:]


def test_formulas_are_left_alone_and_failures_count_as_the_worst() -> None:
    study = optuna.create_study()
    trials = Trials(study)
    trials.ask_formula(formula("yarn"))
    sampler = make_sampler()
    for place, asked in enumerate([trials.ask_candidate(sampler) for _ in range(6)]):
        tell(trials, asked, None if place == 0 else float(place))
    factors = trials.ask_candidate(sampler).factors
    assert study.trials[-1].user_attrs[GENERATION] == 1
    assert study.trials[-1].user_attrs["operator"] == "cma"
    assert np.isfinite(factors.values).all()


def test_generation_sizes_are_the_configuration_s() -> None:
    assert make_sampler().generation_sizes == [6] * 8


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("population_size", 3, "cma.population_size must be at least 4, got 3"),
        ("num_generations", 0, "cma.num_generations must be at least 1, got 0"),
        ("sigma", 0.0, "cma.sigma must be a number above 0, got 0.0"),
        ("sigma", math.inf, "cma.sigma must be a number above 0, got inf"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(field: str, value: float, message: str) -> None:
    options = {field: value}
    with pytest.raises(ValueError, match=message):
        CmaConfig(**options)  # type: ignore[arg-type]


def test_a_space_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the largest factor must be above 1, got 1\. Set cma\.high\."):
        MonotoneSpace(template=formula("yarn"), high=1.0)


def test_factors_at_a_bound_that_is_no_round_number_stay_inside_their_distributions() -> None:
    space = MonotoneSpace(template=formula("yarn"), high=32 / 3, temperatures=(2 / 3, 5 / 3))
    params = space.to_params([100.0] * 16, 100.0)
    for name, distribution in space.distributions().items():
        assert distribution._contains(distribution.to_internal_repr(params[name]))
    assert space.candidate(params, method="cma-search").values == (32 / 3,) * 16


def steady(study: optuna.Study, sampler: CmaSampler, num: int, *, workers: int, seed: int) -> list[RescaleFactors]:
    """Ask whenever a worker is free; who finishes first is drawn. Return all candidates in the order asked."""
    rng = np.random.default_rng(seed)
    trials = Trials(study)
    running: list[Asked] = []
    found = []
    for _ in range(num):
        if len(running) == workers:
            asked = running.pop(int(rng.integers(workers)))
            tell(trials, asked, loss(asked.factors))
        running.append(trials.ask_candidate(sampler))
        found.append(running[-1].factors)
    for asked in running:
        tell(trials, asked, loss(asked.factors))
    return found


def test_with_one_worker_the_steady_schedule_is_the_generational_one() -> None:
    one_by_one = steady(optuna.create_study(), make_sampler(schedule="steady"), 24, workers=1, seed=0)
    assert one_by_one == run(optuna.create_study(), make_sampler(), 24)


def test_the_steady_schedule_learns_from_whoever_finishes_first() -> None:
    study = optuna.create_study()
    found = steady(study, make_sampler(schedule="steady"), 300, workers=10, seed=0)
    assert min(map(loss, found)) < loss(formula("yarn")) / 5
    generations = [trial.user_attrs[GENERATION] for trial in study.trials]
    assert generations == sorted(generations)
    # By hand: before the n-th is asked for, n - 10 are finished, and every 6 make an update
    assert generations == [max(0, number - 9 if number >= 10 else 0) // 6 for number in range(300)]


@pytest.mark.parametrize("num_before", [5, 17, 40])
def test_a_new_sampler_takes_up_a_steady_search_where_it_was(tmp_path: Path, num_before: int) -> None:
    storage = JournalStorage(JournalFileBackend(str(tmp_path / "journal")))
    study = optuna.create_study(study_name="s", storage=storage)
    old = make_sampler(schedule="steady")
    steady(study, old, num_before, workers=4, seed=1)
    fresh = make_sampler(schedule="steady")
    trials = study.get_trials()
    assert fresh.propose(fresh.searched(trials)) == old.propose(old.searched(trials))


def test_a_study_that_was_not_asked_for_by_this_optimiser_is_refused() -> None:
    study = optuna.create_study()
    run(study, make_sampler(), 12)
    other = make_sampler(seed=1)
    with pytest.raises(ValueError, match=r"^a search must be taken up with the libraries that it began with, got"):
        other.propose(other.searched(study.get_trials()))
