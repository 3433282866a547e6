"""The descent: torch's Adam takes the same steps, state needs only the trials, and noise is walked through."""

import math
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import NamedTuple

import numpy as np
import optuna
import pytest
import torch
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from torch.optim.lr_scheduler import CosineAnnealingLR

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.monotone_space import TEMPERATURE, MonotoneSpace
from search.parametrization import Vector, all_pairs, spline
from search.samplers.gradient import GradientConfig, GradientSampler
from search.samplers.joint import GENERATION, NUM_UPDATES, Proposal
from search.study import Asked, Trials
from tests.search.telling import tell as tell_trial

CONFIG = GradientConfig(num_steps=60, learning_rate=0.02)


@pytest.fixture(autouse=True)
def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def formula(name: str, temperature: float = 1.1) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(temperature)


SPACE = MonotoneSpace(template=formula("yarn"), parametrization=spline(16, 5), high=16.0)
HIDDEN = SPACE.factors_of(np.array([0.6, 0.25, 0.85, 0.3, 0.25, 1.4]), method="hidden")


def make_sampler(
    config: GradientConfig = CONFIG, *, space: MonotoneSpace = SPACE, start: RescaleFactors | None = None
) -> GradientSampler:
    return GradientSampler(space, config, start=start or formula("yarn"))


class Measured(NamedTuple):
    loss: float
    gradient: Vector


Landscape = Callable[[RescaleFactors, int], Measured | None]


def distance(factors: RescaleFactors, optimum: RescaleFactors) -> Measured:
    """Return the squared distance in log lambda and temperature, and its gradient by both."""
    logs = np.log(factors.values) - np.log(optimum.values)
    warmth = factors.attention_temperature - optimum.attention_temperature
    return Measured(float(np.sum(logs**2) + warmth**2), np.append(2 * logs, 2 * warmth))


def to_hidden(factors: RescaleFactors, number: int) -> Measured:
    return distance(factors, HIDDEN)


def failing(factors: RescaleFactors, number: int) -> Measured | None:
    """As `to_hidden`; every fourth fails."""
    return None if number % 4 == 3 else distance(factors, HIDDEN)


def tell(trials: Trials, asked: Asked, landscape: Landscape) -> None:
    found = landscape(asked.factors, asked.trial)
    if found is None:
        tell_trial(trials, asked, None)
    else:
        tell_trial(trials, asked, found.loss, gradient=found.gradient.tolist())


class Step(NamedTuple):
    known: list[FrozenTrial]
    proposal: Proposal


def walk(
    sampler: GradientSampler,
    num: int,
    landscape: Landscape = to_hidden,
    *,
    workers: int = 1,
    rng: np.random.Generator | None = None,
    study: optuna.Study | None = None,
) -> list[Step]:
    """Ask whenever a worker is free; the oldest finishes first, or whom the generator draws. Tell all in the end."""
    trials, running, steps = Trials(study or optuna.create_study()), list[Asked](), list[Step]()
    for _ in range(num):
        if len(running) == workers:
            tell(trials, running.pop(0 if rng is None else int(rng.integers(workers))), landscape)
        known = list(trials.searched(sampler))
        steps.append(Step(known, sampler.propose(known)))
        running.append(trials.ask_candidate(sampler))
    for asked in running:
        tell(trials, asked, landscape)
    steps.append(Step(list(trials.searched(sampler)), sampler.propose(trials.searched(sampler))))
    return steps


def distance_in_torch(point: torch.Tensor) -> torch.Tensor:
    """Return `distance` to HIDDEN at the candidate of a point, which has six digits, with the point's gradient."""
    logs = torch.tensor(SPACE.parametrization.matrix) @ point[:5] ** 2
    logs = logs + (torch.log(torch.round(torch.exp(logs), decimals=6)) - logs).detach()
    hidden = torch.tensor(np.log(HIDDEN.values))
    return ((logs - hidden) ** 2).sum() + (point[5] - 1.4) ** 2


@pytest.mark.parametrize("delay", [0, 2])
def test_torch_s_adam_takes_the_same_steps(delay: int) -> None:
    start = np.array([0.4, 0.4, 0.7, 0.4, 0.4, 1.1])  # far enough from 0, below which torch would go
    sampler = make_sampler(start=SPACE.factors_of(start, method="start"))
    steps = walk(sampler, CONFIG.num_steps, workers=1 + delay)
    point = torch.tensor(start, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([point], lr=0.02, betas=(0.9, 0.95), eps=1e-12)
    schedule = CosineAnnealingLR(adam, T_max=60, eta_min=0.05 * 0.02)
    points, norms = [point.detach().clone()], []
    for step in range(CONFIG.num_steps):
        measured_at = points[max(0, step - delay)].clone().requires_grad_()  # the oldest finishes first
        (point.grad,) = torch.autograd.grad(distance_in_torch(measured_at), measured_at)
        norms.append(float(torch.nn.utils.clip_grad_norm_([point], 1.0)))
        rate = adam.param_groups[0]["lr"]
        adam.param_groups[0]["lr"] = rate / (1 + min(step, delay))  # the older, the less it is trusted
        adam.step()
        adam.param_groups[0]["lr"] = rate
        schedule.step()
        points.append(point.detach().clone())
    assert max(norms) > 1 > min(norms)  # some were cut and some were not
    found = [steps[number + delay].proposal.params for number in range(CONFIG.num_steps - delay)]
    for params, expected in zip(found, points, strict=False):
        wanted = SPACE.params_of(expected.numpy())
        # 2e-5: torch adds 1e-6 to the norm that it cuts by, and a sixth digit may be rounded otherwise
        assert [params[name] for name in wanted] == pytest.approx(list(wanted.values()), rel=2e-5)


def test_the_walk_begins_at_its_start_and_comes_near_a_hidden_optimum() -> None:
    config = GradientConfig()
    steps = walk(make_sampler(config), config.num_steps)
    losses = [to_hidden(SPACE.candidate(step.proposal.params, method="a"), 0).loss for step in steps]
    start = SPACE.factors_of(SPACE.point(formula("yarn")), method="a")
    assert losses[0] == pytest.approx(to_hidden(start, 0).loss, rel=1e-3)  # no coordinate stays at 0
    assert losses[-1] < losses[0] / 1000
    assert losses[-1] == min(losses[::20] + losses[-1:])


@pytest.mark.parametrize("workers", [2, 6])
def test_it_comes_near_where_gradients_are_a_few_steps_old_or_missing(workers: int) -> None:
    config = GradientConfig()
    steps = walk(make_sampler(config), 200, failing, workers=workers, rng=np.random.default_rng(0))
    losses = [to_hidden(SPACE.candidate(step.proposal.params, method="a"), 0).loss for step in steps]
    assert losses[-1] < losses[0] / 20


def test_documents_that_differ_are_walked_through_where_a_single_one_is_fitted() -> None:
    rng = np.random.default_rng(3)
    center = SPACE.point(HIDDEN)
    documents = [SPACE.factors_of(center + rng.normal(0.0, 0.1, 6), method="document") for _ in range(64)]

    def true_loss(factors: RescaleFactors) -> float:
        return float(np.mean([distance(factors, document).loss for document in documents]))

    def fresh(factors: RescaleFactors, number: int) -> Measured:
        return distance(factors, documents[number % 64])

    walker = make_sampler(GradientConfig())
    end = walk(walker, 200, fresh)[-1].known
    best = true_loss(mean_of(documents))
    excesses = []
    for single in range(8):
        fitter = make_sampler(GradientConfig())
        found = walk(fitter, 200, lambda factors, number, one=documents[single]: distance(factors, one))  # type: ignore[misc]
        excesses.append(true_loss(fitter.picks(found[-1].known)[0]) - best)
    assert true_loss(walker.picks(end)[0]) - best < np.mean(excesses) / 10


def mean_of(documents: list[RescaleFactors]) -> RescaleFactors:
    """Return the factors with the smallest mean squared distance to all."""
    values = np.exp(np.mean([np.log(document.values) for document in documents], axis=0))
    temperature = float(np.mean([document.attention_temperature for document in documents]))
    return HIDDEN.with_values(values.tolist(), method="mean").with_temperature(temperature)


@pytest.mark.parametrize("workers", [1, 4])
def test_a_new_sampler_goes_on_as_the_old_one_after_any_number_of_trials(workers: int) -> None:
    rng = np.random.default_rng(1)
    for known, proposal in walk(make_sampler(), 50, failing, workers=workers, rng=rng):
        fresh = make_sampler()
        assert fresh.propose(known) == proposal
        assert fresh.propose(known) == proposal  # asking changes nothing


@pytest.mark.parametrize("workers", [1, 4])
def test_a_walk_is_taken_up_from_its_journal(tmp_path: Path, workers: int) -> None:
    def storage() -> JournalStorage:
        return JournalStorage(JournalFileBackend(str(tmp_path / "journal")))

    study = optuna.create_study(study_name="s", storage=storage())
    steps = walk(make_sampler(), 30, failing, workers=workers, rng=np.random.default_rng(2), study=study)
    again = Trials(optuna.load_study(study_name="s", storage=storage()))
    fresh = make_sampler()
    assert fresh.propose(again.searched(fresh)) == steps[-1].proposal


def test_a_clock_that_was_set_back_changes_no_step() -> None:
    trials, sampler = Trials(optuna.create_study()), make_sampler()
    for _ in range(3):
        tell(trials, trials.ask_candidate(sampler), to_hidden)
    known = trials.searched(sampler)
    turned = [copy(trial) for trial in known]
    for trial, other in zip(turned, reversed(known), strict=True):
        trial.datetime_complete = other.datetime_complete
    assert make_sampler().propose(turned) == make_sampler().propose(known)


def test_a_failed_or_dropped_candidate_makes_no_step() -> None:
    trials, sampler = Trials(optuna.create_study()), make_sampler()
    tell(trials, trials.ask_candidate(sampler), to_hidden)
    before = sampler.propose(trials.searched(sampler))
    tell(trials, trials.ask_candidate(sampler), failing_always)
    dropped = trials.ask_candidate(sampler)
    tell_trial(trials, dropped, 9.0, is_dropped=True)
    after = sampler.propose(trials.searched(sampler))
    assert (after.params, after.system_attrs) == (before.params, before.system_attrs)
    assert (before.generation, after.generation) == (1, 3)
    assert dict(after.system_attrs) == {NUM_UPDATES: 1}


def failing_always(factors: RescaleFactors, number: int) -> None:
    return None


def test_nobody_waits_for_a_gradient() -> None:
    found = [step.proposal for step in walk(make_sampler(), 5, workers=10)[:5]]
    assert [proposal.params for proposal in found] == [found[0].params] * 5
    assert [proposal.generation for proposal in found] == [0, 1, 2, 3, 4]


def test_the_picks_are_means_of_the_walk_and_its_end() -> None:
    sampler = make_sampler()
    steps = walk(sampler, 39)
    points = [SPACE.point(SPACE.candidate(step.proposal.params, method="a")) for step in steps]
    half, quarter, end = sampler.picks(steps[-1].known)
    for pick, expected in ((half, points[20:]), (quarter, points[30:]), (end, points[-1:])):
        # 1e-4: the candidates have six digits
        np.testing.assert_allclose(SPACE.point(pick), np.mean(expected, axis=0), atol=1e-4)
    assert end == SPACE.candidate(steps[-1].proposal.params, method=GradientSampler.method)
    assert make_sampler().picks([]) == [SPACE.candidate(steps[0].proposal.params, method=GradientSampler.method)] * 3


@pytest.mark.parametrize("direction", [-1.0, 1.0])
def test_a_slope_without_end_leads_to_the_bounds_and_no_further(direction: float) -> None:
    space = MonotoneSpace(template=formula("yarn"), parametrization=all_pairs(16), high=8.0, temperatures=(0.9, 1.5))

    def slope(factors: RescaleFactors, number: int) -> Measured:
        return Measured(0.5, np.full(17, direction))

    steps = walk(make_sampler(GradientConfig(num_steps=80, learning_rate=0.1), space=space), 80, slope)
    for step in steps:
        assert all(space.distributions()[name]._contains(value) for name, value in step.proposal.params.items())
    last = space.candidate(steps[-1].proposal.params, method="a")
    if direction < 0:
        assert last.values == (8.0,) * 16
        assert last.attention_temperature == 1.5
    else:
        # coordinates stay at 0.01, where they have a slope still
        np.testing.assert_allclose(np.log(last.values), 1e-4 * np.arange(1, 17), atol=1e-6)
        assert last.attention_temperature == 0.9


def test_a_start_outside_the_space_is_brought_inside() -> None:
    space = MonotoneSpace(template=formula("yarn"), parametrization=spline(16, 5), high=2.0, temperatures=(0.9, 1.2))
    params = make_sampler(space=space, start=formula("linear", 1.7)).propose([]).params
    assert params[TEMPERATURE] == 1.2
    assert all(space.distributions()[name]._contains(value) for name, value in params.items())


def test_a_temperature_that_is_not_free_stays() -> None:
    space = MonotoneSpace(template=formula("yarn"), parametrization=spline(16, 5), high=16.0, temperatures=(1.1, 1.1))
    steps = walk(make_sampler(space=space), 20)
    assert {step.proposal.params[TEMPERATURE] for step in steps} == {1.1}
    losses = [to_hidden(space.candidate(step.proposal.params, method="a"), 0).loss for step in steps]
    assert losses[-1] < losses[0]


def test_every_step_is_a_generation() -> None:
    sampler = make_sampler()
    assert (sampler.generation_sizes, sampler.needs_gradient) == ([1] * 60, True)
    known = walk(sampler, 6)[-1].known
    assert [trial.user_attrs[GENERATION] for trial in known] == list(range(6))
    assert {trial.user_attrs["operator"] for trial in known} == {"gradient step"}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("num_steps", 0, r"gradient\.num_steps must be at least 1, got 0\. Raise it\."),
        ("learning_rate", 0.0, r"gradient\.learning_rate must be a number above 0, got 0\.0\. Correct it\."),
        ("learning_rate", math.inf, r"gradient\.learning_rate must be a number above 0, got inf\. Correct it\."),
        ("learning_rate", math.nan, r"gradient\.learning_rate must be a number above 0, got nan\. Correct it\."),
        ("beta1", 1.0, r"gradient\.beta1 must lie in \[0, 1\), got 1\.0\. Correct it\."),
        ("beta2", -0.1, r"gradient\.beta2 must lie in \[0, 1\), got -0\.1\. Correct it\."),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused(field: str, value: float, message: str) -> None:
    options = {field: value}
    with pytest.raises(ValueError, match=f"^{message}$"):
        GradientConfig(**options)  # type: ignore[arg-type]


def test_a_gradient_that_can_never_be_measured_ends_the_search_with_its_reason() -> None:
    sampler = make_sampler()
    trials: list[FrozenTrial] = []
    for number in range(3):
        proposal = sampler.propose(trials)
        trials.append(
            create_trial(
                state=TrialState.FAIL,
                params=proposal.params,
                distributions=sampler.space.distributions(),
                user_attrs=proposal.origin | {"failure": f"out of memory: {number}"},
                system_attrs=dict(proposal.system_attrs),
            )
        )
    message = r"^the gradient must be measurable, got 3 failures at the start, the first: out of memory: 0\. Use --alg"
    with pytest.raises(ValueError, match=message):
        sampler.propose(trials)
