"""The evolution of LongRoPE2 as an Optuna sampler."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from optuna.trial import FrozenTrial, TrialState

from rope.factors import RescaleFactors
from search.operators import crossover, initial_genomes, mutate
from search.samplers.joint import GENERATION, JointSampler, Proposal, Schedule, SpaceExhaustedError, loss_of
from search.space import Genome, SearchSpace


@dataclass(frozen=True, kw_only=True)
class EvolutionConfig:
    """How the paper's evolution runs; the defaults are the paper's (parents, counts and step: LongRoPE's)."""

    population_size: int = 64
    """Candidates of the initial population."""
    num_parents: int = 32
    """Best candidates so far that may breed."""
    num_mutations: int = 16
    """Mutants a generation."""
    num_crossovers: int = 16
    """Crossovers a generation."""
    num_generations: int = 40
    """Generations after the initial population."""
    mutation_probability: float = 0.3
    """Chance of each factor to change in a mutant."""
    crossover_probability: float = 0.15
    """Chance of each factor to come from the second parent; the published code multiplies 0.3 by 0.5."""
    max_tries: int = 100
    """Tries of an operator to make a candidate that is new."""

    def __post_init__(self) -> None:
        for name in ("population_size", "num_parents", "max_tries"):
            if getattr(self, name) < 1:
                raise ValueError(f"evolution.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("num_mutations", "num_crossovers", "num_generations"):
            if getattr(self, name) < 0:
                raise ValueError(f"evolution.{name} must not be negative, got {getattr(self, name)}")
        if self.num_generations > 0 and self.generation_size == 0:
            raise ValueError(
                "a generation must have a candidate, got evolution.num_mutations 0 and evolution.num_crossovers 0; "
                "raise one or set evolution.num_generations to 0"
            )
        for name in ("mutation_probability", "crossover_probability"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"evolution.{name} must lie in (0, 1], got {getattr(self, name)}")

    @property
    def generation_size(self) -> int:
        """Candidates of every generation after the first."""
        return self.num_mutations + self.num_crossovers


class _Offspring(NamedTuple):
    genome: Genome
    operator: str
    parents: tuple[int, ...]


class LongRoPE2Sampler(JointSampler):
    """Samples joint, monotone factor vectors by the paper's evolution.

    The n-th candidate draws from a generator seeded with (seed, n). Its parents are the best of the generations
    before its own, or in the steady schedule the best of all that are finished when it is asked for. Where generations
    have documents of their own, each begins with the parents, to be measured on them too, and breeds from the
    generation before alone, all of which was measured on the same.

    Raises:
        ValueError: The initial population has no room for every critical dimension.

    Source: LongRoPE2, arXiv:2502.20082, section 3.3.
    """

    method = "longrope2-search"

    def __init__(
        self,
        space: SearchSpace,
        config: EvolutionConfig,
        *,
        seed: int,
        schedule: Schedule = "generational",
        remeasures_parents: bool = False,
    ) -> None:
        if config.population_size < len(space.critical_dims):
            raise ValueError(
                f"evolution.population_size must be at least {len(space.critical_dims)}, one candidate for every "
                f"critical dimension, got {config.population_size}. Raise it, or name fewer in space.critical_dims."
            )
        self.space: SearchSpace = space
        self._config = config
        self._seed = seed
        self._steady = schedule == "steady"
        self._num_remeasured = config.num_parents if remeasures_parents else 0
        self._genomes: dict[int, Genome] = {}
        self._losses: dict[int, float] = {}
        self._initial: list[Genome] = []

    @property
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation, the initial population first."""
        return [self._config.population_size] + [self._generation_size] * self._config.num_generations

    @property
    def _generation_size(self) -> int:
        return self._num_remeasured + self._config.generation_size

    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the next candidate.

        Raises:
            SpaceExhaustedError: Every try gave a candidate that the study already holds.
        """
        index = len(earlier)
        generation = self._generation(index)
        if not self._initial:
            self._initial = self._initial_population()
        offspring = self._initial_offspring(index) if generation == 0 else self._breed(earlier, index, generation)
        return Proposal(self.space.to_params(offspring.genome), generation, offspring.operator, offspring.parents)

    def picks(self, earlier: Sequence[FrozenTrial]) -> list[RescaleFactors]:
        """Return the best of the last generation where generations have documents of their own, best first."""
        if not self._num_remeasured or not earlier:
            return []
        last = max(trial.user_attrs[GENERATION] for trial in earlier)
        best = self._parents(earlier, last + 1) or self._parents(earlier, last)
        return [self.space.factors(self._genome(trial), method=self.method) for trial in best]

    def _generation(self, index: int) -> int:
        beyond_first = index - self._config.population_size
        return 0 if beyond_first < 0 else 1 + beyond_first // self._generation_size

    def _initial_population(self) -> list[Genome]:
        config = self._config
        return initial_genomes(
            self.space,
            np.random.default_rng([self._seed]),
            num=config.population_size,
            probability=config.mutation_probability,
            max_tries=config.max_tries,
        )

    def _initial_offspring(self, index: int) -> _Offspring:
        if index >= len(self._initial):
            raise SpaceExhaustedError(f"the space holds no more than {len(self._initial)} candidates to begin with")
        return _Offspring(self._initial[index], "initial", ())

    def _breed(self, earlier: Sequence[FrozenTrial], index: int, generation: int) -> _Offspring:
        rng = np.random.default_rng([self._seed, index])
        parents = self._parents(earlier, generation)
        if not parents:
            raise SpaceExhaustedError("no candidate of the generations before could be measured, so none can breed")
        place = (index - self._config.population_size) % self._generation_size
        if place < min(self._num_remeasured, len(parents)):
            return _Offspring(self._genome(parents[place]), "re-measured", (parents[place].number,))
        taken = {self._genome(trial) for trial in earlier}
        place = max(0, place - self._num_remeasured)
        if place >= self._config.num_mutations and len(parents) > 1:
            one, two = (parents[i] for i in rng.choice(len(parents), size=2, replace=False))
            child = crossover(
                self.space,
                rng,
                self._genome(one),
                self._genome(two),
                taken=taken,
                probability=self._config.crossover_probability,
                max_tries=self._config.max_tries,
            )
            if child is not None:
                return _Offspring(child, "crossover", (one.number, two.number))
        for parent in (parents[i] for i in rng.permutation(len(parents))):
            child = mutate(
                self.space,
                rng,
                self._genome(parent),
                taken=taken,
                probability=self._config.mutation_probability,
                max_tries=self._config.max_tries,
            )
            if child is not None:
                return _Offspring(child, "mutation", (parent.number,))
        raise SpaceExhaustedError(f"no new candidate in {len(parents)} x {self._config.max_tries} tries")

    def _parents(self, earlier: Sequence[FrozenTrial], generation: int) -> list[FrozenTrial]:
        known = earlier if self._steady else [t for t in earlier if t.user_attrs[GENERATION] < generation]
        if self._num_remeasured:
            known = [trial for trial in known if trial.user_attrs[GENERATION] == generation - 1]
        # what lost a race comes after all that did not: it may still breed, so that a population stays one
        complete = [trial for trial in known if trial.state in (TrialState.COMPLETE, TrialState.PRUNED)]
        if self._steady and not complete:  # more workers than the first population: breed from what they work on
            return [trial for trial in known if trial.state == TrialState.RUNNING]
        return sorted(complete, key=self._rank)[: self._config.num_parents]

    def _genome(self, trial: FrozenTrial) -> Genome:
        if trial.number not in self._genomes:
            self._genomes[trial.number] = self.space.from_params(trial.params)
        return self._genomes[trial.number]

    def _rank(self, trial: FrozenTrial) -> tuple[bool, float, int]:
        if trial.number not in self._losses:
            self._losses[trial.number] = loss_of(trial)
        return trial.state == TrialState.PRUNED, self._losses[trial.number], trial.number
