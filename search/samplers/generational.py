"""What generational samplers share: whose trials are whose, and that nothing is ever sampled alone."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Protocol

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from rope.factors import RescaleFactors

METHOD = "method"
"""User attribute that names a trial's formula, or the search that made it."""
ORIGIN = "origin"
"""User attribute of a searched trial: its generation, its operator, and what else its sampler needs to know of it."""


class SpaceExhaustedError(RuntimeError):
    """No candidate that is new was found within the bounded number of tries."""


class Space(Protocol):
    """What a search is free to change, as Optuna parameters."""

    def distributions(self) -> dict[str, BaseDistribution]:
        """Return the parameters of a candidate."""

    def candidate(self, params: Mapping[str, float], *, method: str) -> RescaleFactors:
        """Return the factors that parameters stand for, under the searching method's name."""


class GenerationalSampler(BaseSampler):
    """Samples joint candidates, generation by generation.

    Its state is a pure function of (seed, finished trials), so the result does not depend on the order in which the
    trials of a generation finish, and a resumed study needs nothing but its storage. Trials that carry a `METHOD`
    when they are asked for are formulas and left alone.
    """

    method: str
    """Name that the searched candidates go by."""
    space: Space
    """What it searches."""

    @property
    @abstractmethod
    def generation_sizes(self) -> list[int]:
        """Candidates of each generation."""

    @abstractmethod
    def sample_candidate(
        self, study: Study, trial: FrozenTrial, earlier: list[FrozenTrial]
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return a candidate's parameters and its origin.

        Args:
            study: The ledger.
            trial: The trial that is being asked for.
            earlier: Searched trials before it, in the order in which they were asked for.

        Raises:
            SpaceExhaustedError: There is nothing new to try.
        """

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        """Return the whole space for a searched trial, nothing for a formula's."""
        return {} if METHOD in trial.user_attrs else self.space.distributions()

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: Mapping[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Return the next candidate's parameters and note its origin in the trial's user attributes."""
        if not search_space:
            return {}
        earlier = [t for t in study.get_trials(deepcopy=False) if ORIGIN in t.user_attrs and t.number < trial.number]
        params, origin = self.sample_candidate(study, trial, earlier)
        # Optuna's own samplers reach the storage like this: a sampler has no public way to annotate its trial.
        study._storage.set_trial_user_attr(trial._trial_id, ORIGIN, origin)
        return params

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuse: factors are only sampled jointly, since they must be monotone.

        Raises:
            ValueError: always, with the parameter's name.
        """
        raise ValueError(f"every parameter must belong to the search space, got {param_name!r}. Sample it elsewhere.")
