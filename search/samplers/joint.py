"""What our samplers share: joint candidates, whose trials are whose, and when a candidate may learn from another."""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, Protocol

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from rope.factors import RescaleFactors

METHOD = "method"
"""User attribute that names a trial's formula, or the search that made it."""
GENERATION = "generation"
"""User attribute of searched trials alone: which generation the candidate belongs to, from 0."""
OPERATOR = "operator"
"""User attribute of searched trials: what made the candidate."""
PARENTS = "parents"
"""User attribute of searched trials: numbers of the trials that it was bred from."""
GRADIENT = "gradient"
"""User attribute of searched trials that were measured with it: the loss's gradient by log lambda of every pair, then
by the attention temperature; mean over the documents."""
NUM_FINISHED = "num_finished"
"""User attribute of trials with a gradient: how many of the study finished before it. Clocks may go back."""
NUM_UPDATES = "ropewalk:num_updates"
"""System attribute of searched trials of those samplers that learn step by step: the steps before it was asked for."""

Schedule = Literal["steady", "generational"]
"""Whether a candidate may learn from all that is finished, or from the generations before its own alone."""


class SpaceExhaustedError(RuntimeError):
    """No candidate that is new was found within the bounded number of tries."""


class Space(Protocol):
    """What a search is free to change, as Optuna parameters."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the parameters of a candidate."""

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that parameters stand for, under the searching method's name."""


class Proposal(NamedTuple):
    """The next candidate."""

    params: dict[str, Any]
    """Its Optuna parameters."""
    generation: int
    """Its generation, from 0."""
    operator: str
    """What made it."""
    parents: tuple[int, ...]
    """Numbers of the trials that it was bred from."""
    system_attrs: Mapping[str, Any] = MappingProxyType({})
    """What a sampler of Optuna's keeps with the trial and reads again."""

    @property
    def origin(self) -> dict[str, Any]:
        """The user attributes that say where the candidate is from."""
        return {GENERATION: self.generation, OPERATOR: self.operator, PARENTS: list(self.parents)}


class JointSampler(BaseSampler):
    """Samples joint candidates: all factors at once, since they must be monotone.

    Its state is a pure function of (seed, searched trials), so a resumed study needs nothing but its storage. In the
    generational schedule the result does not depend on the order in which the trials of a generation finish. Trials
    that carry a `METHOD` when they are asked for are formulas and left alone.
    """

    method: str
    """Name that the searched candidates go by."""
    space: Space
    """What it searches."""
    needs_gradient: bool = False
    """Whether its trials must be told with the gradient of their loss."""

    @property
    @abstractmethod
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation."""

    @abstractmethod
    def propose(self, earlier: Sequence[FrozenTrial]) -> Proposal:
        """Return the next candidate.

        Args:
            earlier: Searched trials, in the order in which they were asked for, finished or not.

        Raises:
            SpaceExhaustedError: There is nothing new to try.
        """

    def picks(self, earlier: Sequence[FrozenTrial]) -> list[RescaleFactors]:
        """Return candidates that the sampler would pick beside the best that were measured, the best first.

        Optimisers that follow noisy values know more than their points: the mean of many is better than each.

        Args:
            earlier: As for `propose`.
        """
        return []

    def searched(self, trials: Iterable[FrozenTrial]) -> list[FrozenTrial]:
        """Return those of a study's trials that are searched candidates, in the same order.

        One that was left by a process that died before all its parameters were written is no candidate.
        """
        num_params = len(self.space.distributions())
        return [trial for trial in trials if GENERATION in trial.user_attrs and len(trial.params) == num_params]

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space for a searched trial, nothing for a formula's."""
        return {} if METHOD in trial.user_attrs else self.space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next candidate's parameters and note its origin in the trial's user attributes."""
        if not search_space:
            return {}
        others = (other for other in study.get_trials(deepcopy=False) if other.number < trial.number)
        proposal = self.propose(self.searched(others))
        for key, value in proposal.origin.items():
            # Optuna's own samplers reach the storage like this: a sampler has no public way to annotate its trial.
            study._storage.set_trial_user_attr(trial._trial_id, key, value)
        for key, value in proposal.system_attrs.items():
            study._storage.set_trial_system_attr(trial._trial_id, key, value)
        return proposal.params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: factors are only sampled jointly, since they must be monotone.

        Raises:
            ValueError: always, with the parameter's name.
        """
        raise ValueError(f"every parameter must belong to the search space, got {param_name!r}. Sample it elsewhere.")


def loss_of(trial: FrozenTrial) -> float:
    """Return what a trial that is complete or pruned is ranked by: the sum of its objectives, nats per token.

    Args:
        trial: Its values are perplexities; a pruned one's are an estimate.
    """
    return math.fsum(math.log(value) for value in trial.values)


def finished_places(earlier: Sequence[FrozenTrial]) -> list[int]:
    """Return the places of the trials that are finished, in the order in which they were."""
    finished = [
        (trial.user_attrs.get(NUM_FINISHED, -1), trial.datetime_complete, place)
        for place, trial in enumerate(earlier)
        if trial.datetime_complete is not None
    ]
    return [place for *_, place in sorted(finished)]
