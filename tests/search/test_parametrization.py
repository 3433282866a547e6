"""Coordinates of monotone factors: splines as their books define them, the paper's law, gradients, and back again."""

import math

import numpy as np
import pytest
from scipy.interpolate import BSpline

from rope.longrope2 import longrope2_factors
from rope.methods import METHODS
from search.parametrization import Parametrization, Vector, all_pairs, from_critical_dim, spline

NUM_PAIRS = 16
BY_NAME = {
    "all pairs": all_pairs(NUM_PAIRS),
    "critical dimension 5": from_critical_dim(NUM_PAIRS, 5),
    "critical dimension 1": from_critical_dim(NUM_PAIRS, 1),
    "4 knots": spline(NUM_PAIRS, 4),
    "9 knots": spline(NUM_PAIRS, 9),
}
every = pytest.mark.parametrize("parametrization", BY_NAME.values(), ids=BY_NAME.keys())


def some_points(parametrization: Parametrization, num: int = 50) -> list[Vector]:
    return list(np.random.default_rng(0).normal(0.0, 0.6, (num, parametrization.num_coordinates)))


@pytest.mark.parametrize(("num_pairs", "num_knots"), [(16, 4), (16, 8), (16, 16), (64, 12)])
def test_the_columns_of_a_spline_are_integrals_of_normed_b_splines(num_pairs: int, num_knots: int) -> None:
    # Ramsay 1988: M-splines are B-splines of degree 2 over their integrals, and I-splines integrate those
    last = float(num_pairs - 1)
    knots = np.concatenate([[0.0] * 2, np.linspace(0.0, last, num_knots - 1), [last] * 2])
    matrix = spline(num_pairs, num_knots).matrix
    assert matrix.shape == (num_pairs, num_knots) == (num_pairs, len(knots) - 3)
    for column in range(num_knots):
        one = np.eye(num_knots)[column]
        b_spline = BSpline(knots, one, 2, extrapolate=False)
        whole = float(b_spline.integrate(0.0, last))
        integrals = [float(b_spline.integrate(0.0, pair)) / whole for pair in range(num_pairs)]
        # 1e-12: both sum a few products of numbers of about 1
        np.testing.assert_allclose(matrix[:, column], integrals, atol=1e-12)


def test_the_smallest_spline_worked_out_by_hand() -> None:
    # Three pairs, knots at 0, 1 and 2. At the middle the B-splines of degree 3 are 0, 1/4, 1/2, 1/4 and 0
    expected = np.array([[0, 0, 0, 0], [1, 0.75, 0.25, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(spline(3, 4).matrix, expected, atol=1e-15)


@every
def test_the_gradient_is_that_of_finite_differences(parametrization: Parametrization) -> None:
    rng = np.random.default_rng(1)
    target = rng.normal(size=NUM_PAIRS)

    def loss(point: Vector) -> float:
        return float(np.sum((np.log(parametrization.values(point)) - target) ** 2))

    for point in some_points(parametrization, 5):
        by_log_lambda = 2.0 * (np.log(parametrization.values(point)) - target)
        steps = 1e-5 * np.eye(len(point))
        differences = [(loss(point + step) - loss(point - step)) / 2e-5 for step in steps]
        # central differences are wrong by the step's square and by rounding over the step, both about 1e-10
        np.testing.assert_allclose(parametrization.gradient(point, by_log_lambda), differences, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("critical_dim", [1, 5, 15])
def test_pairs_below_the_critical_dimension_follow_the_paper_s_law(critical_dim: int) -> None:
    parametrization = from_critical_dim(NUM_PAIRS, critical_dim)
    assert parametrization.num_coordinates == NUM_PAIRS - critical_dim
    for point in some_points(parametrization, 10):
        values = parametrization.values(point)
        law = longrope2_factors(
            32,
            1e4,
            original_length=256,
            target_length=2048,
            critical_dim=critical_dim,
            right_values=values[critical_dim:],
        )
        np.testing.assert_allclose(values, law.values, rtol=1e-12)  # powers against exponentials of logarithms


def test_a_point_of_all_pairs_worked_out_by_hand() -> None:
    point = np.array([0.0, math.sqrt(math.log(2)), 0.0, -math.sqrt(math.log(3))])
    np.testing.assert_allclose(all_pairs(4).values(point), [1, 2, 2, 6], rtol=1e-12)


@every
def test_any_coordinates_give_factors_that_are_at_least_one_and_do_not_decrease(
    parametrization: Parametrization,
) -> None:
    for point in some_points(parametrization):
        values = np.array(parametrization.values(point))
        assert values.shape == (NUM_PAIRS,)
        assert values[0] >= 1
        assert (np.diff(values) >= 0).all()


@every
def test_factors_give_their_coordinates_back_without_the_signs(parametrization: Parametrization) -> None:
    for point in some_points(parametrization):
        found = parametrization.coordinates(parametrization.values(point))
        # 1e-5: a coordinate near 0 is the root of a rounded square
        np.testing.assert_allclose(found, np.abs(point), atol=1e-5)


@pytest.mark.parametrize("name", ["none", "linear", "ntk", "yarn", "llama3", "longrope2"])
def test_every_formula_is_a_point_where_all_pairs_are_free(name: str) -> None:
    factors = METHODS[name](32, 500.0, original_length=256, target_length=1024)
    parametrization = all_pairs(NUM_PAIRS)
    values = parametrization.values(parametrization.coordinates(factors.values))
    np.testing.assert_allclose(values, factors.values, rtol=1e-12)


def test_a_spline_keeps_the_fastest_pair_and_comes_near_to_yarn() -> None:
    factors = METHODS["yarn"](32, 500.0, original_length=256, target_length=1024)
    parametrization = spline(NUM_PAIRS, 8)
    values = parametrization.values(parametrization.coordinates(factors.values))
    assert values[0] == 1.0
    assert np.abs(np.log(values) - np.log(factors.values)).max() < 0.1


@every
def test_what_is_no_point_becomes_the_nearest_one(parametrization: Parametrization) -> None:
    factors = METHODS["yarn"](32, 500.0, original_length=256, target_length=1024).values
    nearest = parametrization.coordinates(factors)

    def error(point: Vector) -> float:
        return float(np.sum((np.log(parametrization.values(point)) - np.log(factors)) ** 2))

    rng = np.random.default_rng(2)
    for size in (1e-3, 1e-2, 0.1):
        for _ in range(20):
            assert error(nearest + rng.normal(0.0, size, len(nearest))) >= error(nearest) - 1e-12


def test_factors_that_are_below_one_or_fall_are_raised_first() -> None:
    published = [0.5, 1.0, 3.0, 2.0]
    parametrization = all_pairs(4)
    np.testing.assert_allclose(parametrization.values(parametrization.coordinates(published)), [1, 1, 3, 3], rtol=1e-12)


def test_a_matrix_whose_column_falls_is_a_fault_of_ours() -> None:
    with pytest.raises(AssertionError, match="a column that falls could give factors that do"):
        Parametrization(np.array([[1.0, 0.0], [0.5, 1.0]]))
