"""How candidates are made from candidates: pure functions of a random generator and genomes.

Every loop is bounded. A function that could not make a candidate that is new returns None and leaves the choice of
what to try instead to its caller.
"""

from collections.abc import Callable, Container, Iterator

import numpy as np

from search.space import Genome, SearchSpace


def initial_genomes(
    space: SearchSpace,
    rng: np.random.Generator,
    *,
    num: int,
    probability: float,
    max_tries: int,
) -> list[Genome]:
    """Return the initial population: flat starts at every critical dimension, then mutants of them.

    For each candidate of the critical dimension every pair from it upward gets one factor drawn from the bounds. The
    first round over the critical dimensions starts at the lower bound itself (for the default bounds: the scale),
    so that the formula at each critical dimension is always among the candidates; the paper draws it too.

    Args:
        space: What is free.
        rng: Source of randomness.
        num: Population size.
        probability: Chance of each factor to change in a mutant.
        max_tries: Tries for each mutant to be new.

    Returns:
        Up to `num` distinct genomes; fewer only where the space holds fewer or none new was found in time.

    Source: LongRoPE2, arXiv:2502.20082, algorithm 1.
    """
    population: list[Genome] = []
    for genome in _flat_starts(space, rng):
        if len(population) < num and genome not in population:
            population.append(genome)
    num_seeds = len(population)
    for turn in range(num - num_seeds):
        parent = population[turn % len(population)]
        child = mutate(space, rng, parent, taken=set(population), probability=probability, max_tries=max_tries)
        if child is not None:
            population.append(child)
    return population


def _flat_starts(space: SearchSpace, rng: np.random.Generator) -> Iterator[Genome]:
    yield from (_flat(space, dim, space.low_step) for dim in space.critical_dims)
    for dim in space.critical_dims:
        yield _flat(space, dim, int(rng.integers(space.low_step, space.high_step, endpoint=True)))


def _flat(space: SearchSpace, critical_dim: int, index: int) -> Genome:
    return Genome(critical_dim, (index,) * (space.num_pairs - critical_dim))


def mutate(
    space: SearchSpace,
    rng: np.random.Generator,
    parent: Genome,
    *,
    taken: Container[Genome],
    probability: float,
    max_tries: int,
) -> Genome | None:
    """Return a mutant of `parent` that is monotone and not in `taken`, or None after `max_tries`.

    Each factor changes with `probability`, in ascending order of pairs, to a uniform draw from the grid between its
    neighbours (the lower one already changed; the bounds at the two ends). The critical dimension is inherited.

    Source: LongRoPE2, arXiv:2502.20082, algorithm 2 and appendix B.
    """

    def draw() -> Genome:
        grid = list(parent.grid)
        for pair in np.flatnonzero(rng.random(len(grid)) < probability):
            lower = grid[pair - 1] if pair > 0 else space.low_step
            upper = grid[pair + 1] if pair + 1 < len(grid) else space.high_step
            grid[pair] = int(rng.integers(lower, upper, endpoint=True))
        return Genome(parent.critical_dim, tuple(grid))

    return _first_new(draw, taken, max_tries)


def crossover(
    space: SearchSpace,
    rng: np.random.Generator,
    first: Genome,
    second: Genome,
    *,
    taken: Container[Genome],
    probability: float,
    max_tries: int,
) -> Genome | None:
    """Return `first` with some factors of `second`, monotone and not in `taken`, or None after `max_tries`.

    The child keeps the critical dimension of `first`; pairs that `second` does not free are left as they are.

    Source: the published code's crossover (microsoft/LongRoPE, evolution/algorithms); the paper describes none.
    """
    shared = np.arange(max(first.critical_dim, second.critical_dim), space.num_pairs)

    def draw() -> Genome:
        grid = list(first.grid)
        for pair in shared[rng.random(len(shared)) < probability]:
            grid[pair - first.critical_dim] = second.grid[pair - second.critical_dim]
        return Genome(first.critical_dim, tuple(grid))

    return _first_new(draw, taken, max_tries)


def _first_new(draw: Callable[[], Genome], taken: Container[Genome], max_tries: int) -> Genome | None:
    for _ in range(max_tries):
        child = draw()
        if child not in taken and _is_monotone(child):
            return child
    return None


def _is_monotone(genome: Genome) -> bool:
    return all(lower <= upper for lower, upper in zip(genome.grid, genome.grid[1:], strict=False))
