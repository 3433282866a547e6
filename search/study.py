"""The ledger: one Optuna study in which every formula and every searched candidate is a trial."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from datetime import datetime
from pathlib import Path
from time import monotonic, sleep
from typing import NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import save_note
from sqlalchemy.exc import SQLAlchemyError

from results.measurement import Measurement, candidate_key, perplexity
from results.urls import without_password
from rope.factors import RescaleFactors
from search.journal import JOURNAL
from search.objectives import Losses
from search.relational import OneWriterStorage
from search.samplers.joint import GENERATION, GRADIENT, METHOD, NUM_FINISHED, JointSampler
from search.space import lambda_name

logger = logging.getLogger(__name__)

CANDIDATE = "candidate"
"""User attribute of every trial: the key of its factors, by which its measurements are found."""
PATIENCE_SECONDS = 300.0
"""How long a storage's server may be away."""
PAUSE_SECONDS = 2.0
"""Time between two tries to reach it."""
NAME = "name"
"""User attribute of every trial: what it is, for a reader."""


class Asked(NamedTuple):
    """A candidate and its trial."""

    trial: int
    """The trial's number."""
    factors: RescaleFactors
    """The candidate."""
    is_told: bool
    """Whether the trial is finished already; a run that is taken up again meets such."""
    generation: int = 0
    """The generation that it belongs to; 0 for a formula."""
    was_dropped: bool = False
    """Whether it was told as one that lost a race."""
    losses: Losses = ()
    """What it was told with, nats per token by objective; empty where it is not told or failed."""


class Verdict(NamedTuple):
    """What a measured candidate's trial is closed with."""

    values: Sequence[float]
    """One per objective; NaN or infinite if it could not be measured."""
    num_documents: int
    """Documents that it was to be measured on."""
    is_dropped: bool = False
    """Whether it lost a race, so that its values are an estimate."""
    gradient: list[float] | None = None
    """Of its loss, where it was measured with one."""


def open_storage(url: str | None, *, run_dir: Path) -> BaseStorage:
    """Return the storage at an Optuna URL, or the journal file of the run directory for None.

    Raises:
        ValueError: The URL is none, or its storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return JournalStorage(JournalFileBackend(str(run_dir / JOURNAL)))
    try:
        # what holds its tables in a file or a server; Redis is another kind of storage
        storage = optuna.storages.get_storage(url if url.startswith("redis") else OneWriterStorage(url))
        optuna.get_all_study_names(storage)
    except (ImportError, ValueError, OSError, optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = without_password(" ".join(str(error).split()))
        raise ValueError(f"--storage must be a URL that Optuna can open, got an error: {reason}. Correct it.") from None
    return storage


def check_new(storage: BaseStorage, name: str) -> None:
    """Refuse a storage that holds a study of this name.

    Raises:
        ValueError: It does.
    """
    if name in optuna.get_all_study_names(storage):
        raise ValueError(
            f"the storage must not hold a study {name!r} yet, got one. Choose another --run-dir or --storage, or take "
            "that run up with --resume."
        )


def open_study(
    name: str,
    *,
    storage: BaseStorage,
    identity: Mapping[str, str | int],
    note: str,
    directions: Sequence[str] = ("minimize",),
) -> optuna.Study:
    """Return the study of a run, which minimises perplexity; made where the storage has none of this name.

    Args:
        name: The study's name.
        storage: Where it is kept.
        identity: What the study is of; kept as its user attributes.
        note: What a reader of the dashboard is told, in Markdown.
        directions: One for each objective.

    Raises:
        ValueError: The storage holds a study of this name that is of something else.
    """
    if name not in optuna.get_all_study_names(storage):
        study = optuna.create_study(
            study_name=name, storage=storage, directions=[StudyDirection[name.upper()] for name in directions]
        )
        for key, value in identity.items():
            study.set_user_attr(key, value)
        save_note(study, note)
        return study
    study = optuna.load_study(study_name=name, storage=storage)
    found = study.user_attrs
    # a process that died while it made the study may have left some out
    others = [f"{key} {found[key]}" for key, value in identity.items() if found.get(key, value) != value]
    if others:
        wanted = ", ".join(f"{key} {value}" for key, value in identity.items())
        raise ValueError(
            f"the study {name!r} must be of {wanted}, got one of {', '.join(others)}. "
            "Choose the --storage of this run, or another --run-dir."
        )
    return study


class Trials:
    """The trials of a study as its one writer knows them: read once, then kept without asking the storage again."""

    def __init__(self, study: optuna.Study) -> None:
        """Read the trials that the study holds.

        Args:
            study: The ledger; nobody else may write trials to it.
        """
        self.study = study
        """The study."""
        self._storage = study._storage  # a trial is written whole, which only the storage itself can do
        self._study_id = study._study_id
        self._trials = study.get_trials(deepcopy=False)

    def searched(self, sampler: JointSampler) -> list[FrozenTrial]:
        """Return the trials of searched candidates, in the order in which they were asked for."""
        return sampler.searched(self._trials)

    def asked_before(self, sampler: JointSampler) -> list[Asked]:
        """Return the searched candidates that the study holds, in the order in which they were asked for."""
        return [
            _asked(trial, sampler.space.candidate(trial.params, method=sampler.method))
            for trial in self.searched(sampler)
        ]

    def ask_formula(self, factors: RescaleFactors, *, name: str = "") -> Asked:
        """Return the trial of a formula's factors, which need not lie inside the space that is searched.

        Args:
            factors: The formula's; its `method` is the trial's. The study may hold it already.
            name: What the trial is, for a reader; default: method and temperature.
        """
        key = candidate_key(factors)
        for trial in self._trials:
            is_searched = GENERATION in trial.user_attrs
            if not is_searched and (trial.user_attrs.get(CANDIDATE), trial.user_attrs.get(METHOD)) == (
                key,
                factors.method,
            ):
                return _asked(trial, factors)
        params = {lambda_name(pair): value for pair, value in enumerate(factors.values)}
        trial = create_trial(
            state=TrialState.RUNNING,
            params=params,
            distributions={name: FloatDistribution(value, value) for name, value in params.items()},
            user_attrs=_description(
                factors, name or f"{factors.method} at temperature {factors.attention_temperature:.4g}"
            ),
        )
        return Asked(self._add(trial), factors, False)

    def ask_candidate(self, sampler: JointSampler) -> Asked:
        """Return the sampler's next candidate.

        Its trial enters the storage whole, in one write: a process that dies leaves it there or not at all, and a
        journal of 64 factors costs no more than one of 16.

        Args:
            sampler: What chooses.

        Raises:
            SpaceExhaustedError: The sampler found nothing that is new.
        """
        proposal = sampler.propose(self.searched(sampler))
        factors = sampler.space.candidate(proposal.params, method=sampler.method)
        parents = f" of {' and '.join(map(str, proposal.parents))}" if proposal.parents else ""
        name = f"generation {proposal.generation}: {proposal.operator}{parents}"
        trial = create_trial(
            state=TrialState.RUNNING,
            params=proposal.params,
            distributions=sampler.space.distributions(),
            user_attrs=_description(factors, name) | proposal.origin,
            system_attrs=dict(proposal.system_attrs),
        )
        return Asked(self._add(trial), factors, False, proposal.generation)

    def tell(self, number: int, measurements: Sequence[Measurement], verdict: Verdict) -> None:
        """Close a trial with its values, as pruned if it was dropped, or as failed with the first reason.

        Args:
            number: Of a trial that was asked for and is still running.
            measurements: The candidate's, on those of the search documents that it was measured on.
            verdict: What came out.
        """
        if not all(math.isfinite(value) for value in verdict.values):
            reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
            unmeasurable = next(value for value in verdict.values if not math.isfinite(value))
            reason = reasons[0] if reasons else f"perplexity is {unmeasurable}"
            self._close(number, TrialState.FAIL, None, {"failure": reason})
            return
        by_depth = {f"{entry.depth:.2f}": round(perplexity([entry]), 6) for entry in measurements}
        notes: dict[str, object] = {"perplexity_by_depth": dict(sorted(by_depth.items()))}
        if verdict.gradient is not None:
            notes[GRADIENT] = verdict.gradient
            notes[NUM_FINISHED] = sum(trial.state.is_finished() for trial in self._trials)
        if verdict.is_dropped:
            notes["dropped"] = f"after {len(measurements)} of {verdict.num_documents} documents; the value is estimated"
        state = TrialState.PRUNED if verdict.is_dropped else TrialState.COMPLETE
        self._close(number, state, verdict.values, notes)

    def _add(self, trial: FrozenTrial) -> int:
        trial.number = len(self._trials)  # as the storage counts too, since there is one writer

        def write() -> None:
            trial._trial_id = self._storage.create_new_trial(self._study_id, template_trial=trial)

        def is_there() -> bool:
            stored = self.study.get_trials(deepcopy=False)
            if len(stored) > trial.number:
                trial._trial_id = stored[trial.number]._trial_id
            return len(stored) > trial.number

        _persist(write, is_there)
        self._trials.append(trial)
        return trial.number

    def _close(
        self, number: int, state: TrialState, values: Sequence[float] | None, notes: Mapping[str, object]
    ) -> None:
        trial = self._trials[number]

        def write() -> None:
            for key, note in notes.items():
                self._storage.set_trial_user_attr(trial._trial_id, key, note)
            self._storage.set_trial_state_values(trial._trial_id, state, values)

        _persist(write, lambda: self._storage.get_trial(trial._trial_id).state.is_finished())
        # a new object: samplers may hold the old one
        self._trials[number] = closed = copy(trial)
        closed.user_attrs = {**trial.user_attrs, **notes}
        closed.state, closed.datetime_complete = state, datetime.now()
        closed.values = None if values is None else list(values)


def _asked(trial: FrozenTrial, factors: RescaleFactors) -> Asked:
    return Asked(
        trial.number,
        factors,
        trial.state.is_finished(),
        trial.user_attrs.get(GENERATION, 0),
        trial.state == TrialState.PRUNED,
        () if trial.values is None else tuple(math.log(value) for value in trial.values),
    )


def _persist(write: Callable[[], None], is_done: Callable[[], bool]) -> None:
    """Write to the storage; a server that is away for a while is waited for.

    Args:
        write: What to do.
        is_done: Whether an earlier try was carried out although its answer was lost.

    Raises:
        OSError: The server stays away.
    """
    deadline = monotonic() + PATIENCE_SECONDS
    is_again = False
    while True:
        try:
            if not (is_again and is_done()):
                write()
        except StorageInternalError as error:
            reason = without_password(str(error.__cause__ or error).strip().splitlines()[0])
            if monotonic() > deadline:
                raise OSError(
                    f"the study's storage must answer within {PATIENCE_SECONDS:g} seconds, got {reason}. "
                    "Start its server again."
                ) from error
            logger.warning("the study's storage does not answer and is tried again: %s", reason)
            is_again = True
            sleep(PAUSE_SECONDS)
        else:
            return


def _description(factors: RescaleFactors, name: str) -> dict[str, str | int | float | list[int]]:
    attributes: dict[str, str | int | float | list[int]] = {
        NAME: name,
        METHOD: factors.method,
        CANDIDATE: candidate_key(factors),
        "attention_temperature": factors.attention_temperature,
    }
    return attributes if factors.critical_dim is None else attributes | {"critical_dim": factors.critical_dim}
