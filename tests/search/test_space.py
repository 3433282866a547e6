"""The space: the published LLaMA3-8B list is one of its points, and parameters lose nothing."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from search.operators import initial_genomes
from search.space import Genome, SearchSpace, lambda_name

MakeSpace = Callable[..., SearchSpace]


@pytest.fixture
def published(oracle: Callable[[str], Any]) -> dict[str, Any]:
    found: dict[str, Any] = oracle("longrope2_llama3_8b")
    return found


@pytest.fixture
def llama3_space(published: dict[str, Any]) -> SearchSpace:
    """The paper's space for LLaMA3-8B, 8k to 128k tokens."""
    return SearchSpace(
        rotary_dim=published["rotary_dim"],
        base=published["base"],
        original_length=published["original_length"],
        target_length=published["target_length"],
        critical_dims=tuple(range(24, 36)),
        low=16.0,
        high=32.0,
        step=0.01,
        attention_temperature=published["attention_factor"],
    )


def llama3_genome(published: dict[str, Any]) -> Genome:
    """The published list's right part, written in hundredths."""
    right = published["long_factor"][published["critical_dim"] :]
    return Genome(published["critical_dim"], tuple(round(value * 100) for value in right))


def test_the_published_llama3_list_is_a_point_of_the_space(
    published: dict[str, Any], llama3_space: SearchSpace
) -> None:
    factors = llama3_space.factors(llama3_genome(published), method="searched")
    # 5e-10: the list is published with ten digits
    np.testing.assert_allclose(factors.values, published["long_factor"], rtol=5e-10)
    assert factors.values[33:] == tuple(published["long_factor"][33:])
    assert factors.critical_dim == 33
    assert factors.attention_temperature == published["attention_factor"]
    assert (factors.method, factors.scale) == ("searched", 16.0)
    low, high = llama3_space.low_step, llama3_space.high_step
    assert (low, high) == (1600, 3200)
    assert all(low <= index <= high for index in llama3_genome(published).grid)


def test_the_published_llama3_list_survives_optuna_parameters(
    published: dict[str, Any], llama3_space: SearchSpace
) -> None:
    params = llama3_space.to_params(llama3_genome(published))
    assert params["critical_dim"] == 33
    # Floor division would make 2180 of it
    assert params["lambda_33"] == 21.81
    assert llama3_space.from_params(params) == llama3_genome(published)


@pytest.mark.parametrize(("low", "high", "step"), [(8.0, 16.0, 0.01), (16 / 3, 32 / 3, 0.01), (7.9, 17.1, 0.3)])
def test_parameters_round_trip_and_lie_in_their_distributions(
    make_space: MakeSpace, low: float, high: float, step: float
) -> None:
    space = make_space(low=low, high=high, step=step)
    genomes = initial_genomes(space, np.random.default_rng(0), num=200, probability=0.5, max_tries=100)
    assert len(set(genomes)) == 200
    for genome in genomes:
        params = space.to_params(genome)
        distributions = space.distributions()
        assert params.keys() == distributions.keys()
        assert all(distributions[name]._contains(value) for name, value in params.items())
        assert space.from_params(params) == genome


def test_factors_are_monotone_from_one_upward_and_free_ones_stay_on_the_grid_inside_the_bounds(
    make_space: MakeSpace,
) -> None:
    space = make_space(low=16 / 3, high=32 / 3)
    for genome in initial_genomes(space, np.random.default_rng(0), num=200, probability=0.5, max_tries=100):
        values = space.factors(genome, method="searched").values
        right = np.array(values[genome.critical_dim :])
        assert values[0] == 1.0
        assert all(lower <= upper for lower, upper in pairwise(values))
        assert right.min() >= 16 / 3
        assert right.max() <= 32 / 3
        np.testing.assert_array_equal(right, np.round(right, 2))


def test_the_bounds_are_rounded_to_the_grid_inwards_and_not_lost_to_floating_point(make_space: MakeSpace) -> None:
    thirds = make_space(low=16 / 3, high=32 / 3)
    assert (thirds.low_step, thirds.high_step) == (534, 1066)
    # 1.11 / 0.01 is 111.00000000000001 and 2.3 / 0.01 is 229.99999999999997
    space = make_space(low=1.11, high=2.3)
    assert (space.low_step, space.high_step) == (111, 230)


def test_a_dashboard_sorts_the_parameters_as_the_pairs_are_sorted() -> None:
    names = [lambda_name(pair) for pair in range(64)]
    assert sorted(names) == names


@pytest.mark.parametrize("critical_dims", [(), (0,), (3, 16)])
def test_critical_dimensions_that_name_no_pair_above_the_first_are_refused(
    make_space: MakeSpace, critical_dims: tuple[int, ...]
) -> None:
    message = r"^critical dimensions must be pair indices from 1 to 15, got \[.*\]\. Set space\.critical_dims\.$"
    with pytest.raises(ValueError, match=message):
        make_space(critical_dims=critical_dims)


@pytest.mark.parametrize("step", [0.0, -0.01, float("nan")])
def test_a_step_that_is_not_above_zero_is_refused(make_space: MakeSpace, step: float) -> None:
    with pytest.raises(ValueError, match=rf"^the grid step must be a number above 0, got {step:g}\. Set"):
        make_space(step=step)


@pytest.mark.parametrize(
    ("low", "high", "step"),
    [(16.0, 8.0, 0.01), (0.0, 8.0, 0.01), (-1.0, 8.0, 0.01), (float("nan"), 8.0, 0.01), (8.01, 8.09, 0.1)],
)
def test_bounds_without_a_grid_point_are_refused(make_space: MakeSpace, low: float, high: float, step: float) -> None:
    message = (
        rf"^the bounds of the factors must hold a grid point with 1 < low <= high, got low {low:g}, high {high:g}, "
        rf"step {step:g}\. Set space\.low and space\.high\.$"
    )
    with pytest.raises(ValueError, match=message):
        make_space(low=low, high=high, step=step)


@pytest.mark.parametrize(
    ("bound", "value"), [("low", float("inf")), ("high", float("inf")), ("high", float("nan")), ("step", float("inf"))]
)
def test_bounds_and_steps_that_are_not_finite_are_refused(make_space: MakeSpace, bound: str, value: float) -> None:
    with pytest.raises(ValueError, match=rf"Set .*space\.{bound}"):
        make_space(**{bound: value})


@pytest.mark.parametrize(("low", "high"), [(0.5, 0.9), (0.5, 16.0), (1.0, 16.0)])
def test_bounds_not_above_one_are_refused_since_nothing_monotone_lies_there(
    make_space: MakeSpace, low: float, high: float
) -> None:
    with pytest.raises(ValueError, match=r"Set space\.low"):
        make_space(low=low, high=high)
