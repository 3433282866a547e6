"""Samplers of Optuna's by name, as baselines: each is asked in a replica of the trials that it may know."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.samplers import (
    BaseSampler,
    CmaEsSampler,
    GPSampler,
    NSGAIIISampler,
    NSGAIISampler,
    QMCSampler,
    RandomSampler,
    TPESampler,
)
from optuna.study import Study
from optuna.trial import FrozenTrial

from rope.factors import RescaleFactors
from search.monotone_space import CoordinateSpace
from search.samplers.joint import JointSampler, Proposal, Schedule, SpaceExhaustedError
from search.samplers.replica import Answer, Replica, Row, quiet

MAX_TRIES = 20
"""Tries of a sampler to make a candidate that is new; a child of NSGA's may equal its parent."""


class Draw(NamedTuple):
    """What the sampler of one candidate is made from."""

    seed: int
    """A seed of the candidate's own."""
    sequence_seed: int
    """A seed that all candidates of the run share."""
    number: int
    """The candidate's number, from 0, the start's."""
    population_size: int
    """Candidates of a generation."""
    start: dict[str, float]
    """Parameters of the first candidate."""
    distributions: Mapping[str, BaseDistribution]
    """The space."""


class PlacedQMCSampler(QMCSampler):
    """Samples the point of a scrambled Sobol sequence that is the candidate's; Optuna counts points in its storage."""

    def __init__(self, draw: Draw) -> None:
        """Take the place of a candidate; the start is no point, so the first one is the second candidate's."""
        super().__init__(scramble=True, seed=draw.sequence_seed)
        self._place = max(0, draw.number - 1)
        self._space = dict(draw.distributions)

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space, which Optuna would look for in the first trial."""
        return self._space

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


SAMPLERS: Mapping[str, Callable[[Draw], BaseSampler]] = MappingProxyType(
    {
        # what others work on counts as bad, so that a batch spreads
        "tpe": lambda draw: TPESampler(seed=draw.seed, constant_liar=True),
        "random": lambda draw: RandomSampler(seed=draw.seed),
        "qmc": PlacedQMCSampler,
        "gp": lambda draw: GPSampler(seed=draw.seed),
        "nsga2": lambda draw: NSGAIISampler(seed=draw.seed, population_size=draw.population_size),
        "nsga3": lambda draw: NSGAIIISampler(seed=draw.seed, population_size=draw.population_size),
        "optuna-cmaes": lambda draw: CmaEsSampler(seed=draw.seed, popsize=draw.population_size, x0=draw.start),
    }
)
"""What makes the sampler of a candidate, by name."""
UNFIT: Mapping[str, str] = MappingProxyType(
    {
        "brute-force": "which counts all values, and coordinates have no step",
        "grid": "which needs a list of values for every coordinate",
        "partial-fixed": "which holds values for another sampler and draws none itself",
    }
)
"""Samplers of Optuna's that cannot search factors, and why."""
OF_ONE_OBJECTIVE = frozenset({"optuna-cmaes"})
"""Samplers that know no more than one loss."""


@dataclass(frozen=True, kw_only=True)
class NamedConfig:
    """How a sampler of Optuna's runs."""

    population_size: int = 16
    """Candidates a generation; NSGA's and CMA-ES's population."""
    num_candidates: int = 160
    """Candidates in all, the start among them."""

    def __post_init__(self) -> None:
        if self.population_size < 4:
            raise ValueError(f"optuna.population_size must be at least 4, got {self.population_size}. Raise it.")
        if self.num_candidates < 1:
            raise ValueError(f"optuna.num_candidates must be at least 1, got {self.num_candidates}. Raise it.")


def check_sampler(name: str, num_objectives: int = 1) -> None:
    """Refuse a sampler that cannot serve.

    Args:
        name: One of `SAMPLERS`.
        num_objectives: Losses of a trial.

    Raises:
        ValueError: Nothing has this name, it cannot search factors, or it knows fewer objectives.
    """
    if name not in SAMPLERS:
        reason = f", {UNFIT[name]}" if name in UNFIT else ""
        raise ValueError(
            f"the sampler must be one of {', '.join(SAMPLERS)}, got {name!r}{reason}. Choose one of these."
        )
    if num_objectives > 1 and name in OF_ONE_OBJECTIVE:
        others = ", ".join(other for other in SAMPLERS if other not in OF_ONE_OBJECTIVE)
        raise ValueError(
            f"the sampler {name} must have one objective, got {num_objectives}. Choose one of {others} instead."
        )


class NamedSampler(JointSampler):
    """Samples by a sampler of Optuna's from the best formula.

    A fresh sampler, seeded with (seed, number of the candidate), is asked in a replica of the study. In the steady
    schedule the replica shows every trial as it is; in the generational one those of the candidate's own generation
    as running, whatever became of them since.

    Raises:
        ValueError: The sampler is unknown or cannot serve.
    """

    def __init__(
        self,
        space: CoordinateSpace,
        config: NamedConfig,
        *,
        name: str,
        start: RescaleFactors,
        seed: int,
        schedule: Schedule = "generational",
        directions: Sequence[str] = ("minimize",),
    ) -> None:
        check_sampler(name, len(directions))
        self.method = f"{name}-search"
        self.space: CoordinateSpace = space
        self._config = config
        self._name = name
        self._start = space.to_params(start)
        self._seed = seed
        self._steady = schedule == "steady"
        self._distributions = space.distributions()
        self._replica = Replica(self._distributions, directions)
        self._factors: dict[tuple[float, ...], RescaleFactors] = {}

    @property
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation; the last has what is left."""
        whole, rest = divmod(self._config.num_candidates, self._config.population_size)
        return [self._config.population_size] * whole + [rest] * (rest > 0)

    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the start, then what the sampler draws.

        Raises:
            SpaceExhaustedError: Every try gave a candidate that the study already holds.
        """
        generation = len(earlier) // self._config.population_size
        num_told = len(earlier) if self._steady else generation * self._config.population_size
        names = list(self._distributions)
        rows = [Row.of(trial, names, is_told=place < num_told) for place, trial in enumerate(earlier)]
        taken = {self._candidate(row.params) for row in rows}
        for attempt in range(MAX_TRIES):
            answer = self._draw(rows, len(earlier), attempt)
            if self._candidate(answer.params) not in taken:
                operator = self._name if rows else "start"
                return Proposal(answer.params, generation, operator, (), answer.system_attrs)
            rows.append(answer.row())  # as if another worked on it, so that a surrogate looks elsewhere
        raise SpaceExhaustedError(f"no new candidate in {MAX_TRIES} tries of the sampler {self._name}")

    def _draw(self, rows: Sequence[Row], number: int, attempt: int) -> Answer:
        draw = Draw(
            seed=int(np.random.default_rng([self._seed, number, attempt]).integers(2**32)),
            sequence_seed=self._seed + attempt,
            number=number,
            population_size=self._config.population_size,
            start=self._start,
            distributions=self._distributions,
        )
        with quiet():
            sampler = SAMPLERS[self._name](draw)
        return self._replica.ask(sampler, rows, enqueued=None if rows else self._start)

    def _candidate(self, params: Mapping[str, float]) -> RescaleFactors:
        point = tuple(params.values())
        if point not in self._factors:
            self._factors[point] = self.space.candidate(params, method=self.method)
        return self._factors[point]
