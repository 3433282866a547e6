"""Spaces of monotone factors: points are formulas and back, and parameters lie in their distributions, exactly."""

import math

import numpy as np
import pytest
from optuna.distributions import FloatDistribution

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.monotone_space import TEMPERATURE, CoordinateSpace, MonotoneSpace
from search.parametrization import all_pairs, from_critical_dim, spline
from search.space import lambda_name

PARAMETRIZATIONS = {"all": all_pairs(16), "critical": from_critical_dim(16, 5), "spline": spline(16, 6)}


def formula(name: str, temperature: float = 1.1) -> RescaleFactors:
    return METHODS[name](32, 500.0, original_length=256, target_length=1024).with_temperature(temperature)


def make_space(
    name: str = "all", *, high: float = 16.0, temperatures: tuple[float, float] = (0.8, 2.0)
) -> MonotoneSpace:
    return MonotoneSpace(
        template=formula("yarn"), parametrization=PARAMETRIZATIONS[name], high=high, temperatures=temperatures
    )


def coordinate_space(name: str = "all", *, temperatures: tuple[float, float] = (0.8, 2.0)) -> CoordinateSpace:
    return CoordinateSpace(
        template=formula("yarn"), parametrization=PARAMETRIZATIONS[name], high=16.0, temperatures=temperatures
    )


def holds(space: MonotoneSpace, params: dict[str, float]) -> bool:
    """Return whether parameters are those of the space and lie in their distributions."""
    distributions = space.distributions()
    return list(params) == list(distributions) and all(
        distributions[name]._contains(value) for name, value in params.items()
    )


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn", "llama3", "longrope2"])
def test_a_formula_is_a_point_and_comes_back_with_its_temperature(name: str) -> None:
    found = make_space().factors_of(make_space().point(formula(name)), method="a")
    np.testing.assert_allclose(found.values, formula(name).values, atol=5e-7)  # six digits
    assert (found.attention_temperature, found.method) == (1.1, "a")
    assert (found.rotary_dim, found.base, found.original_length, found.target_length) == (32, 500.0, 256, 1024)


def test_a_point_worked_out_by_hand() -> None:
    space = MonotoneSpace(
        template=METHODS["none"](8, 500.0, original_length=256, target_length=1024),
        high=16.0,
        parametrization=all_pairs(4),
    )
    params = space.params_of(np.array([0.0, math.sqrt(math.log(2)), 0.0, -math.sqrt(math.log(3)), 1.2]))
    assert params == {"lambda_00": 1.0, "lambda_01": 2.0, "lambda_02": 2.0, "lambda_03": 6.0, TEMPERATURE: 1.2}


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_the_candidate_of_any_point_is_monotone_inside_the_bounds_and_what_its_parameters_say(name: str) -> None:
    space = make_space(name)
    for point in np.random.default_rng(0).normal(0.0, 1.0, (50, space.num_dims)):
        params = space.params_of(point)
        factors = space.candidate(params, method="a")
        assert holds(space, params)
        assert (np.diff(factors.values) >= 0).all()
        assert 1 <= factors.values[0] <= factors.values[-1] <= 16
        assert factors.values == tuple(params[lambda_name(pair)] for pair in range(16))
        assert 0.8 <= factors.attention_temperature <= 2.0
        assert space.factors_of(point, method="a") == factors


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
def test_a_candidate_gives_its_point_back_without_the_signs(name: str) -> None:
    space = make_space(name)
    num_coordinates = space.parametrization.num_coordinates
    for coordinates in np.random.default_rng(0).uniform(0.1, 0.4, (20, num_coordinates)):
        point = np.append(-coordinates, 1.3)
        found = space.point(space.factors_of(point, method="a"))
        # 2e-3: six digits of lambda, and a spline's neighbours are not far from one another
        np.testing.assert_allclose(found, np.append(coordinates, 1.3), atol=2e-3)


def test_a_temperature_that_is_not_free_is_no_coordinate_but_a_parameter() -> None:
    space = make_space("spline", temperatures=(1.25, 1.25))
    assert (space.num_dims, make_space("spline").num_dims) == (6, 7)
    assert space.point(formula("yarn")).shape == (6,)
    params = space.params_of(np.full(6, 0.3))
    assert params[TEMPERATURE] == 1.25
    assert holds(space, params)


def test_the_largest_coordinate_alone_reaches_the_largest_factor() -> None:
    point = np.zeros(17)
    point[3], point[-1] = make_space().largest_coordinate, 1.0
    values = make_space().factors_of(point, method="a").values
    np.testing.assert_allclose(values, [1.0] * 3 + [16.0] * 13, rtol=1e-12)


def test_factors_at_bounds_that_are_no_round_numbers_stay_inside_their_distributions() -> None:
    space = make_space(high=32 / 3, temperatures=(2 / 3, 5 / 3))
    params = space.params_of(np.full(17, 3.0))
    assert holds(space, params)
    assert space.candidate(params, method="a").values[1:] == (32 / 3,) * 15
    assert params[TEMPERATURE] == 5 / 3


@pytest.mark.parametrize("name", PARAMETRIZATIONS)
@pytest.mark.parametrize("temperatures", [(0.8, 2.0), (1.1, 1.1)])
def test_coordinates_as_parameters_give_the_same_factors(name: str, temperatures: tuple[float, float]) -> None:
    space = coordinate_space(name, temperatures=temperatures)
    plain = make_space(name, temperatures=temperatures)
    params = space.to_params(formula("yarn"))
    assert holds(space, params)
    assert len(params) == space.num_dims
    found = space.candidate(params, method="a")
    expected = plain.factors_of(plain.point(formula("yarn")), method="a")
    np.testing.assert_allclose(found.values, expected.values, rtol=1e-5)  # coordinates have six digits
    assert found.attention_temperature == expected.attention_temperature == 1.1


def test_a_coordinate_is_never_beyond_the_largest() -> None:
    space = coordinate_space("all")
    params = space.to_params(formula("none").with_values([1.0] + [100.0] * 15, method="steep"))
    assert holds(space, params)
    assert params["coordinate_01"] == space.largest_coordinate
    distributions = space.distributions().values()
    assert all(isinstance(found, FloatDistribution) and found.low < found.high for found in distributions)


@pytest.mark.parametrize("high", [1.0, 0.5, math.nan])
def test_a_space_without_room_is_refused(high: float) -> None:
    message = rf"^the largest factor must be above 1, got {high:g}\. Set monotone\.high\.$"
    with pytest.raises(ValueError, match=message):
        make_space(high=high)
