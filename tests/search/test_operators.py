"""The operators: everything they make is new, monotone, inside the bounds and on the grid."""

from itertools import pairwise

import numpy as np
import pytest

from search.operators import crossover, initial_genomes, mutate
from search.space import Genome, SearchSpace


def assert_lies_in(space: SearchSpace, genome: Genome) -> None:
    assert genome.critical_dim in space.critical_dims
    assert len(genome.grid) == space.num_pairs - genome.critical_dim
    assert all(type(index) is int for index in genome.grid)
    assert all(lower <= upper for lower, upper in pairwise(genome.grid))
    assert space.low_step <= genome.grid[0]
    assert genome.grid[-1] <= space.high_step


def all_genomes(space: SearchSpace) -> set[Genome]:
    """The ten genomes of the tiny space."""
    steps = range(space.low_step, space.high_step + 1)
    return {Genome(2, (first, second)) for first in steps for second in steps if first <= second}


def test_the_initial_population_has_a_flat_start_at_the_scale_at_every_critical_dimension(space: SearchSpace) -> None:
    population = initial_genomes(space, np.random.default_rng(0), num=64, probability=0.3, max_tries=100)
    flat = [genome for genome in population if len(set(genome.grid)) == 1]
    assert len(population) == len(set(population)) == 64
    assert {genome.critical_dim for genome in flat if genome.grid[0] == 800} == {3, 4, 5, 6, 7}
    assert {genome.critical_dim for genome in flat if genome.grid[0] != 800} == {3, 4, 5, 6, 7}
    for genome in population:
        assert_lies_in(space, genome)


def test_every_critical_dimension_has_its_share_of_the_initial_population(space: SearchSpace) -> None:
    population = initial_genomes(space, np.random.default_rng(0), num=60, probability=0.3, max_tries=100)
    counts = np.bincount([genome.critical_dim for genome in population])
    assert counts[3:].tolist() == [12] * 5


def test_the_initial_population_is_a_function_of_the_generator(space: SearchSpace) -> None:
    one, same, other = (
        initial_genomes(space, np.random.default_rng(seed), num=30, probability=0.3, max_tries=100)
        for seed in (1, 1, 2)
    )
    assert one == same != other


def test_the_initial_population_holds_at_most_what_the_space_holds(tiny_space: SearchSpace) -> None:
    population = initial_genomes(tiny_space, np.random.default_rng(0), num=64, probability=0.5, max_tries=100)
    assert len(population) == 10
    assert set(population) == all_genomes(tiny_space)


def test_mutants_are_monotone_inside_the_bounds_and_new(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    taken = {Genome(5, (1200,) * 11)}
    for _ in range(1_000):
        parent = sorted(taken)[int(rng.integers(len(taken)))]
        child = mutate(space, rng, parent, taken=taken, probability=0.3, max_tries=100)
        assert child is not None
        assert child not in taken
        assert child.critical_dim == 5
        assert_lies_in(space, child)
        taken.add(child)


def test_every_free_pair_changes_within_a_thousand_mutations(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    parent = Genome(5, tuple(range(1000, 1550, 50)))
    children = [mutate(space, rng, parent, taken={parent}, probability=0.3, max_tries=100) for _ in range(1_000)]
    grids = np.array([child.grid for child in children if child is not None])
    share_changed = np.mean(grids != parent.grid, axis=0)
    # A factor is drawn with probability 0.3; the draw repeats the old one once in about 100. Five standard deviations
    np.testing.assert_allclose(share_changed, 0.3, atol=5 * np.sqrt(0.3 * 0.7 / 1_000))
    # Both ways, and each up to its neighbours
    assert np.all(grids.min(axis=0) < parent.grid)
    assert np.all(grids.max(axis=0) > parent.grid)
    assert grids[:, 0].min() < 810
    assert grids[:, -1].max() > 1590


def test_a_mutation_of_a_flat_start_leaves_it(space: SearchSpace) -> None:
    for start in (800, 1200, 1600):
        parent = Genome(7, (start,) * 9)
        child = mutate(space, np.random.default_rng(0), parent, taken={parent}, probability=0.3, max_tries=100)
        assert child is not None
        assert child != parent


def test_mutation_ends_when_the_space_is_exhausted(tiny_space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    taken = {Genome(2, (801, 802))}
    while (child := mutate(tiny_space, rng, Genome(2, (801, 802)), taken=taken, probability=1.0, max_tries=1_000)) and (
        len(taken) <= 10
    ):
        taken.add(child)
    # The lower pair is drawn up to its old neighbour, so one step reaches all but (803, 803)
    assert child is None
    assert taken == all_genomes(tiny_space) - {Genome(2, (803, 803))}
    full = all_genomes(tiny_space)
    assert mutate(tiny_space, rng, Genome(2, (803, 803)), taken=full, probability=1.0, max_tries=50) is None


@pytest.mark.parametrize("dims", [(5, 5), (3, 7), (7, 3)])
def test_children_of_two_take_each_factor_from_one_of_them(space: SearchSpace, dims: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    first = Genome(dims[0], tuple(800 + 40 * pair for pair in range(dims[0], 16)))
    second = Genome(dims[1], tuple(805 + 41 * pair for pair in range(dims[1], 16)))
    from_second: set[int] = set()
    taken = {first, second}
    for _ in range(100):
        child = crossover(space, rng, first, second, taken=taken, probability=0.5, max_tries=1_000)
        assert child is not None
        assert child not in taken
        assert child.critical_dim == first.critical_dim
        assert_lies_in(space, child)
        for pair, index in enumerate(child.grid, start=dims[0]):
            if index != first.grid[pair - dims[0]]:
                assert index == second.grid[pair - dims[1]]
                from_second.add(pair)
        taken.add(child)
    # Every pair that both free: the two lists lie so close that most mixtures are monotone
    assert from_second == set(range(max(dims), 16))


def test_crossover_takes_every_free_pair_from_the_second_within_a_thousand_draws(space: SearchSpace) -> None:
    rng = np.random.default_rng(0)
    first, second = Genome(4, (1000,) * 12), Genome(4, tuple(range(1000, 1024, 2)))
    counts = np.zeros(12)
    for _ in range(1_000):
        child = crossover(space, rng, first, second, taken={first}, probability=0.5, max_tries=100)
        counts += 0 if child is None else np.array(child.grid) != first.grid
    # The first factor of the two is the same
    assert np.all(counts[1:] > 0)


def test_crossover_of_equal_parents_gives_up_after_its_tries(space: SearchSpace) -> None:
    parent = Genome(4, tuple(range(1000, 1024, 2)))
    rng = np.random.default_rng(0)
    assert crossover(space, rng, parent, parent, taken={parent}, probability=0.5, max_tries=20) is None


def test_crossover_never_returns_what_is_not_monotone(space: SearchSpace) -> None:
    low, high = Genome(4, (900,) * 12), Genome(4, (1500,) * 12)
    rng = np.random.default_rng(0)
    children = [crossover(space, rng, low, high, taken={low, high}, probability=0.5, max_tries=500) for _ in range(50)]
    found = {child for child in children if child is not None}
    assert found
    # Only a run of high factors at the end is monotone
    assert found <= {Genome(4, (900,) * split + (1500,) * (12 - split)) for split in range(1, 12)}
