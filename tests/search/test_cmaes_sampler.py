"""CMA-ES over monotone factors: the library's own steps, results in any order, restarts, and no state but trials."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
from cmaes import CMA
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.monotone_space import TEMPERATURE, MonotoneSpace
from search.parametrization import all_pairs, spline
from search.samplers.cmaes import CmaesConfig, CmaesSampler
from search.samplers.joint import GENERATION, NUM_UPDATES
from search.study import Asked, Trials
from tests.search.telling import tell

SIZE = 6
CONFIG = CmaesConfig(population_size=SIZE, num_generations=8)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def formula(name: str, temperature: float = 1.1) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(temperature)


SPACE = MonotoneSpace(template=formula("yarn"), parametrization=all_pairs(16), high=16.0)
HIDDEN = formula("longrope2", 1.25)


def make_sampler(seed: int = 0, *, config: CmaesConfig = CONFIG, space: MonotoneSpace = SPACE) -> CmaesSampler:
    return CmaesSampler(space, config, start=formula("yarn"), seed=seed)


Loss = Callable[[RescaleFactors, int], float | None]


def loss(factors: RescaleFactors, number: int = 0) -> float:
    """Return the distance to a hidden list with a temperature; 0 there."""
    distance = float(np.sum((np.log(factors.values) - np.log(HIDDEN.values)) ** 2))
    return distance + (factors.attention_temperature - HIDDEN.attention_temperature) ** 2


def failing(factors: RescaleFactors, number: int) -> float | None:
    """As `loss`; every fifth fails."""
    return None if number % 5 == 3 else loss(factors)


class Step(NamedTuple):
    known: list[FrozenTrial]
    trial: FrozenTrial

    def is_repeated_by(self, sampler: CmaesSampler) -> bool:
        """Return whether a sampler that is asked after the same trials gives the same candidate."""
        proposal = sampler.propose(self.known)
        attributes = {key: self.trial.user_attrs[key] for key in proposal.origin}
        return (proposal.params, proposal.origin, dict(proposal.system_attrs)) == (
            self.trial.params,
            attributes,
            self.trial.system_attrs,
        )


class Run:
    """A search whose candidates are asked for and told one by one; every seventh is told as dropped."""

    def __init__(self, sampler: CmaesSampler, loss: Loss = loss, *, study: optuna.Study | None = None) -> None:
        self.trials = Trials(study or optuna.create_study())
        self.steps: list[Step] = []
        self.candidates: list[RescaleFactors] = []
        self._sampler = sampler
        self._loss = loss

    def ask(self) -> Asked:
        known = list(self.trials.searched(self._sampler))
        asked = self.trials.ask_candidate(self._sampler)
        self.steps.append(Step(known, self.trials.searched(self._sampler)[-1]))
        self.candidates.append(asked.factors)
        return asked

    def tell(self, asked: Asked) -> None:
        found = self._loss(asked.factors, asked.trial)
        tell(self.trials, asked, found, is_dropped=found is not None and asked.trial % 7 == 5)

    def generations(self, num: int, order: Callable[[int], list[int]] = lambda size: list(range(size))) -> "Run":
        """Ask and tell whole generations, told in an order."""
        size = self._sampler.generation_sizes[0]
        for _ in range(num):
            generation = [self.ask() for _ in range(size)]
            for place in order(size):
                self.tell(generation[place])
        return self

    def workers(self, num: int, *, workers: int, rng: np.random.Generator) -> "Run":
        """Ask whenever a worker is free; who finishes first is drawn."""
        running: list[Asked] = []
        for _ in range(num):
            if len(running) == workers:
                self.tell(running.pop(int(rng.integers(workers))))
            running.append(self.ask())
        return self


def plain_cma(num_generations: int, loss: Callable[[RescaleFactors, int], float]) -> tuple[list[RescaleFactors], CMA]:
    """Return what the library's optimiser asks for when it is told a generation at a time, and the optimiser."""
    largest = math.sqrt(math.log(16.0))
    optimizer = CMA(
        mean=SPACE.point(formula("yarn")),
        sigma=0.1,
        bounds=np.array([[-largest, largest]] * 16 + [[0.8, 2.0]]),
        seed=0,
        population_size=SIZE,
    )
    found: list[RescaleFactors] = []
    for _ in range(num_generations):
        points = [optimizer.ask() for _ in range(SIZE)]
        first = len(found)
        found += [SPACE.factors_of(point, method=CmaesSampler.method) for point in points]
        losses = [loss(found[first + place], first + place) for place in range(SIZE)]
        # through a perplexity, as a study keeps it
        optimizer.tell([(point, math.log(math.exp(one))) for point, one in zip(points, losses, strict=True)])
    return found, optimizer


def test_generations_are_those_of_the_library_s_optimiser() -> None:
    expected, optimizer = plain_cma(12, loss)
    sampler = make_sampler()
    run = Run(sampler).generations(12)
    assert run.candidates == expected
    last = SPACE.factors_of(optimizer.mean, method=CmaesSampler.method)
    np.testing.assert_allclose(sampler.picks(run.trials.searched(sampler))[1].values, last.values, rtol=1e-6)


def test_failures_count_as_the_worst() -> None:
    expected, _ = plain_cma(8, lambda factors, number: 100.0 if number % 5 == 3 else loss(factors))
    assert Run(make_sampler(), failing).generations(8).candidates == expected


@pytest.mark.parametrize("workers", [1, 10])
def test_the_optimiser_comes_near_a_hidden_optimum_from_yarn(workers: int) -> None:
    run = Run(make_sampler()).workers(360, workers=workers, rng=np.random.default_rng(0))
    assert min(map(loss, run.candidates)) < loss(formula("yarn")) / 5
    assert loss(make_sampler().picks(run.trials.searched(make_sampler()))[1]) < loss(formula("yarn")) / 5


def test_every_candidate_is_monotone_inside_the_bounds_and_exactly_what_the_study_holds() -> None:
    run = Run(make_sampler()).generations(4)
    for factors, trial in zip(run.candidates, run.trials.study.trials, strict=True):
        assert np.all(np.diff(factors.values) >= 0)
        assert 1 <= factors.values[0] <= factors.values[-1] <= 16
        assert SPACE.candidate(trial.params, method=CmaesSampler.method) == factors
        assert factors.attention_temperature == trial.params[TEMPERATURE]


def test_the_order_in_which_a_generation_is_told_changes_nothing() -> None:
    rng = np.random.default_rng(7)
    forward = Run(make_sampler()).generations(6).candidates
    assert Run(make_sampler()).generations(6, lambda size: list(range(size))[::-1]).candidates == forward
    assert Run(make_sampler()).generations(6, lambda size: rng.permutation(size).tolist()).candidates == forward


def test_generations_that_are_measured_on_harder_documents_lead_to_the_same_place() -> None:
    config = CmaesConfig(population_size=SIZE, num_restarts=0)
    plain = Run(make_sampler(config=config)).generations(10).candidates
    # whole numbers move no loss in its generation
    shifted = Run(make_sampler(config=config), lambda factors, number: loss(factors) + number // SIZE % 3)
    assert shifted.generations(10).candidates == plain


def test_another_seed_means_other_candidates() -> None:
    assert Run(make_sampler(1)).generations(1).candidates != Run(make_sampler(0)).generations(1).candidates


def test_nobody_waits_for_a_generation_to_end() -> None:
    run = Run(make_sampler())
    waiting = [run.ask() for _ in range(3 * SIZE)]
    assert len(set(run.candidates)) == 3 * SIZE
    for asked in waiting[::-1][: 3 * SIZE - 1]:
        run.tell(asked)
    run.ask()
    run.tell(waiting[0])  # the first generation is complete, and with it those that waited for it
    run.ask()
    updates = [step.trial.system_attrs[NUM_UPDATES] for step in run.steps]
    assert updates == [0] * (3 * SIZE + 1) + [3]
    assert [step.trial.user_attrs[GENERATION] for step in run.steps] == [0] * 6 + [1] * 6 + [2] * 6 + [3] * 2


@pytest.mark.parametrize("seed", [0, 1])
def test_an_update_is_made_as_soon_as_the_generations_before_are_told(seed: int) -> None:
    run = Run(make_sampler(), failing).workers(90, workers=7, rng=np.random.default_rng(seed))
    for step in run.steps:
        ended = [trial.state.is_finished() for trial in step.known]
        whole = [len(ended) >= end and all(ended[:end]) for end in range(SIZE, 96, SIZE)]
        assert step.trial.system_attrs[NUM_UPDATES] == whole.index(False)


def test_one_worker_gets_the_candidates_of_whole_generations() -> None:
    one_by_one = Run(make_sampler()).workers(24, workers=1, rng=np.random.default_rng(0))
    assert one_by_one.candidates == Run(make_sampler()).generations(4).candidates


@pytest.mark.parametrize("workers", [1, 4, 9])
def test_a_new_sampler_goes_on_as_the_old_one_after_any_number_of_trials(workers: int) -> None:
    run = Run(make_sampler(), failing).workers(45, workers=workers, rng=np.random.default_rng(1))
    assert all(step.is_repeated_by(make_sampler()) for step in run.steps)


def test_it_does_in_the_generational_order_too() -> None:
    run = Run(make_sampler(), failing).generations(6)
    assert all(step.is_repeated_by(make_sampler()) for step in run.steps)


@pytest.mark.parametrize("num_before", [5, 12, 17, 40])
def test_a_search_is_taken_up_from_its_journal(tmp_path: Path, num_before: int) -> None:
    def storage() -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(tmp_path / "journal")))

    study = optuna.create_study(study_name="s", storage=storage())
    old = make_sampler()
    run = Run(old, failing, study=study).workers(num_before, workers=4, rng=np.random.default_rng(1))
    known = run.trials.searched(old)
    again = Trials(optuna.load_study(study_name="s", storage=storage()))
    fresh = make_sampler()
    assert fresh.propose(again.searched(fresh)) == old.propose(known)


def restarting(num_restarts: int) -> CmaesSampler:
    """Return a sampler of two pairs, which soon converges."""
    start = METHODS["linear"](4, 500.0, original_length=256, target_length=1024)
    space = MonotoneSpace(template=start, parametrization=all_pairs(2), high=16.0, temperatures=(1.0, 1.0))
    config = CmaesConfig(population_size=SIZE, num_generations=300, num_restarts=num_restarts)
    return CmaesSampler(space, config, start=start, seed=0)


def flat_at_the_bottom(factors: RescaleFactors, number: int = 0) -> float:
    """Return the distance to (1.5, 3); no less than one that tells points apart no more."""
    distance = (math.log(factors.values[0] / 1.5)) ** 2 + (math.log(factors.values[1] / 3.0)) ** 2
    return max(distance, 1e-5)


def spreads(run: Run) -> list[float]:
    """Return the standard deviation of log lambda within each generation."""
    logs = np.log([factors.values for factors in run.candidates]).reshape(-1, SIZE, 2)
    found: list[float] = logs.std(axis=1).max(axis=1).tolist()
    return found


def begun_anew(run: Run) -> list[int]:
    """Return the generations that are spread out after one that was not."""
    found = spreads(run)
    return [place for place in range(1, len(found)) if found[place - 1] < 0.005 and found[place] > 0.05]


@pytest.mark.parametrize("num_restarts", [0, 2])
def test_a_search_that_has_converged_begins_anew_from_its_best_with_its_first_step_size(num_restarts: int) -> None:
    run = Run(restarting(num_restarts), flat_at_the_bottom).generations(230)
    assert len(begun_anew(run)) == num_restarts
    for place in begun_anew(run):
        logs = np.log([factors.values for factors in run.candidates[place * SIZE : (place + 1) * SIZE]])
        # lambda = exp of a square: its spread is twice the coordinate times the step size, 0.1, for six points
        assert spreads(run)[place] < 0.4
        np.testing.assert_allclose(logs.mean(axis=0), np.log([1.5, 3.0]), atol=0.2)
    assert min(map(flat_at_the_bottom, run.candidates)) == 1e-5


@pytest.mark.parametrize("workers", [1, 3])
def test_a_new_sampler_goes_on_as_the_old_one_across_restarts(workers: int) -> None:
    run = Run(restarting(1), flat_at_the_bottom).workers(720, workers=workers, rng=np.random.default_rng(0))
    begun = begun_anew(run)
    assert len(begun) == 1
    for number in (*range(begun[0] * SIZE - 4, begun[0] * SIZE + 10), 719):
        assert run.steps[number].is_repeated_by(restarting(1))


def test_the_picks_are_means_of_the_updates() -> None:
    sampler = make_sampler()
    assert sampler.picks([]) == []
    run = Run(sampler).generations(1)
    one, last = sampler.picks(run.trials.searched(sampler))
    assert one == last
    means = [SPACE.point(last)]
    for _ in range(5):
        run.generations(1)
        means.append(SPACE.point(sampler.picks(run.trials.searched(sampler))[1]))
    half, last = sampler.picks(run.trials.searched(sampler))
    # 1e-3: a coordinate near 0 is the root of a difference of numbers of six digits
    np.testing.assert_allclose(SPACE.point(half), np.mean(means[3:], axis=0), atol=1e-3)
    np.testing.assert_allclose(SPACE.point(last), means[-1], atol=1e-3)
    fresh = make_sampler()
    assert fresh.picks(run.trials.searched(fresh)) == [half, last]


def test_formulas_in_the_same_study_are_left_alone() -> None:
    run = Run(make_sampler())
    run.tell(run.trials.ask_formula(formula("linear")))
    assert run.generations(3).candidates == Run(make_sampler()).generations(3).candidates
    assert {step.trial.user_attrs["operator"] for step in run.steps} == {"cmaes"}


def test_a_start_that_is_warmer_than_the_space_or_beyond_its_bounds_is_brought_inside() -> None:
    space = MonotoneSpace(template=formula("yarn"), parametrization=spline(16, 4), high=1.5)
    sampler = CmaesSampler(space, CONFIG, start=formula("linear", 2.6), seed=0)
    run = Run(sampler).generations(3)
    for step in run.steps:
        assert all(space.distributions()[name]._contains(value) for name, value in step.trial.params.items())


def test_generation_sizes_are_the_configuration_s() -> None:
    assert make_sampler().generation_sizes == [6] * 8


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("population_size", 3, r"cmaes\.population_size must be at least 4, got 3\. Raise it\."),
        ("num_generations", 0, r"cmaes\.num_generations must be at least 1, got 0\. Raise it\."),
        ("sigma", 0.0, r"cmaes\.sigma must be a number above 0, got 0\.0\. Correct it\."),
        ("sigma", math.inf, r"cmaes\.sigma must be a number above 0, got inf\. Correct it\."),
        ("num_restarts", -1, r"cmaes\.num_restarts must not be negative, got -1\. Correct it\."),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(field: str, value: float, message: str) -> None:
    options = {field: value}
    with pytest.raises(ValueError, match=f"^{message}$"):
        CmaesConfig(**options)  # type: ignore[arg-type]


def test_a_study_that_was_not_asked_for_by_this_optimiser_is_refused() -> None:
    run = Run(make_sampler()).generations(2)
    other = make_sampler(seed=1)
    message = (
        r"^a search must be taken up with the libraries that it began with, got another point than trial 0 has\. "
        r"Restore cmaes and numpy as they were, or start a new run\.$"
    )
    with pytest.raises(ValueError, match=message):
        other.propose(run.trials.searched(other))
