"""A copy in memory of the trials that a sampler may know, in which a sampler of Optuna's is asked."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import optuna
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial

_REPEATED = ("fixed_params", "tpe:relative_params", "gp:relative_params")
"""System attributes that only repeat the parameters of their trial."""


class Row(NamedTuple):
    """What a sampler may know of a trial."""

    state: TrialState
    """Running, or how it ended."""
    values: list[float] | None
    """Its losses, one per objective."""
    params: dict[str, Any]
    """Its parameters, in the order of the space."""
    system_attrs: dict[str, Any]
    """What a sampler left with it."""
    intermediate_values: dict[int, float]
    """What was reported of it on the way."""

    @classmethod
    def of(cls, trial: FrozenTrial, names: Sequence[str], *, is_told: bool) -> "Row":
        """Return what is known of a trial; where it is not told, only that it was asked for.

        Args:
            trial: Of any study.
            names: Its parameters, in the order of the space.
            is_told: Whether its state and its losses may be known.
        """
        params = {name: trial.params[name] for name in names}
        if not is_told:
            return cls(TrialState.RUNNING, None, params, dict(trial.system_attrs), {})
        values = None if trial.values is None else list(trial.values)
        return cls(trial.state, values, params, dict(trial.system_attrs), dict(trial.intermediate_values))

    def can_become(self, later: "Row") -> bool:
        """Return whether a later row is of the same trial, unchanged or finished since."""
        if self.state != TrialState.RUNNING:
            return self == later
        return (self.params, self.system_attrs) == (later.params, later.system_attrs)


class Answer(NamedTuple):
    """What a sampler drew."""

    params: dict[str, Any]
    """The parameters, in the order of the space."""
    system_attrs: dict[str, Any]
    """What the sampler left with the trial."""

    def row(self) -> Row:
        """Return what is known of a trial with these parameters that runs."""
        return Row(TrialState.RUNNING, None, dict(self.params), dict(self.system_attrs), {})


class Replica:
    """A study in memory that is brought up to date before every question.

    What is asked for counts as running, and is kept while the trials that follow say so. Where they say something else
    the study is made anew; so an answer depends on nothing but the sampler and the rows.
    """

    def __init__(self, distributions: Mapping[str, BaseDistribution], directions: Sequence[str]) -> None:
        self._distributions = dict(distributions)
        self._directions = [StudyDirection[direction.upper()] for direction in directions]
        self._rows: list[Row] = []
        self._study = self._empty_study()

    def ask(self, sampler: BaseSampler, rows: Sequence[Row], *, enqueued: Mapping[str, float] | None = None) -> Answer:
        """Return what a sampler draws after the trials of these rows.

        Args:
            sampler: A fresh one.
            rows: All trials before, in the order in which they were asked for.
            enqueued: Parameters that the sampler must take.
        """
        with quiet():
            self._bring_up_to_date(rows)
            if enqueued is not None:
                self._study.enqueue_trial(dict(enqueued))
            self._study.sampler = sampler
            trial = self._study.ask(self._distributions)
        found = self._study._storage.get_trial(trial._trial_id)
        params = {name: float(found.params[name]) for name in self._distributions}
        attrs = {key: value for key, value in found.system_attrs.items() if not key.startswith(_REPEATED)}
        answer = Answer(params, attrs)
        self._rows.append(answer.row())
        return answer

    def _bring_up_to_date(self, rows: Sequence[Row]) -> None:
        pairs = zip(self._rows, rows, strict=False)
        if len(self._rows) > len(rows) or not all(held.can_become(row) for held, row in pairs):
            self._study, self._rows = self._empty_study(), []
        for place, row in enumerate(rows):
            if place == len(self._rows):
                self._add(row)
            elif self._rows[place] != row:
                self._change(place, row)
        storage = self._study._storage
        for key in storage.get_study_system_attrs(self._study._study_id):
            # NSGA keeps the parents of a generation here, which a process that resumes could not find again
            storage.set_study_system_attr(self._study._study_id, key, None)

    def _add(self, row: Row) -> None:
        self._study.add_trial(create_trial(**row._asdict(), distributions=self._distributions))
        self._rows.append(row)

    def _change(self, place: int, row: Row) -> None:
        storage = self._study._storage
        trial_id = storage.get_trial_id_from_study_id_trial_number(self._study._study_id, place)
        for step, value in row.intermediate_values.items():
            storage.set_trial_intermediate_value(trial_id, step, value)
        if row.state.is_finished():
            storage.set_trial_state_values(trial_id, row.state, row.values)
        self._rows[place] = row

    def _empty_study(self) -> optuna.Study:
        with quiet():
            return optuna.create_study(directions=self._directions)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what Optuna says of experiments, of its own arguments and of studies that it makes."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)
