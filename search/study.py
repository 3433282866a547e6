"""The ledger: one Optuna study in which every formula and every searched candidate is a trial."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import optuna
from optuna.distributions import FloatDistribution
from optuna.storages import BaseStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import FrozenTrial, TrialState, create_trial
from optuna_dashboard import save_note
from sqlalchemy.exc import SQLAlchemyError

from results.measurement import Measurement, candidate_key, perplexity
from results.urls import without_password
from rope.factors import RescaleFactors
from search.journal import JOURNAL
from search.samplers.joint import METHOD, JointSampler
from search.space import lambda_name

CANDIDATE = "candidate"
"""User attribute of every trial: the key of its factors, by which its measurements are found."""
NAME = "name"
"""User attribute of every trial: what it is, for a reader."""
CONNECT_SECONDS = 10
"""How long a PostgreSQL server may take to answer."""


class Asked(NamedTuple):
    """A candidate and its trial."""

    trial: int
    """The trial's number."""
    factors: RescaleFactors
    """The candidate."""
    is_told: bool
    """Whether the trial is finished already; a run that is taken up again meets such."""


def open_storage(url: str | None, *, run_dir: Path) -> BaseStorage:
    """Return the storage at an Optuna URL, or the journal file of the run directory for None.

    Raises:
        ValueError: The URL is none, or its storage cannot be reached.
    """
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url is None:
        return JournalStorage(JournalFileBackend(str(run_dir / JOURNAL)))
    try:
        storage = optuna.storages.get_storage(_relational(url) or url)
        optuna.get_all_study_names(storage)
    except (ImportError, ValueError, OSError, optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = without_password(" ".join(str(error).split()))
        raise ValueError(f"--storage must be a URL that Optuna can open, got an error: {reason}. Correct it.") from None
    return storage


def _relational(url: str) -> RDBStorage | None:
    """Return a storage that finds out by itself when its server was restarted; None where Optuna knows better."""
    if not url.startswith("postgresql"):
        return None
    options = {"pool_pre_ping": True, "connect_args": {"connect_timeout": CONNECT_SECONDS}}
    return RDBStorage(url, engine_kwargs=options)


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


def open_study(name: str, *, storage: BaseStorage, identity: Mapping[str, str | int], note: str) -> optuna.Study:
    """Return the study of a run, which minimises perplexity; made where the storage has none of this name.

    Args:
        name: The study's name.
        storage: Where it is kept.
        identity: What the study is of; kept as its user attributes.
        note: What a reader of the dashboard is told, in Markdown.

    Raises:
        ValueError: The storage holds a study of this name that is of something else.
    """
    if name not in optuna.get_all_study_names(storage):
        study = optuna.create_study(study_name=name, storage=storage)
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


def ask_formula(study: optuna.Study, factors: RescaleFactors) -> Asked:
    """Return the trial of a formula's factors, which need not lie inside the space that is searched.

    Args:
        study: The ledger; it may hold the trial already.
        factors: The formula's; its `method` names the trial.
    """
    for trial in study.get_trials(deepcopy=False):
        attributes = trial.user_attrs
        if attributes.get(CANDIDATE) == candidate_key(factors) and attributes.get(METHOD) == factors.method:
            return Asked(trial.number, factors, trial.state.is_finished())
    params = {lambda_name(pair): value for pair, value in enumerate(factors.values)}
    attributes = _description(factors, f"{factors.method} at temperature {factors.attention_temperature:.4g}")
    trial = create_trial(
        state=TrialState.RUNNING,
        params=params,
        distributions={name: FloatDistribution(value, value) for name, value in params.items()},
        user_attrs=attributes,
    )
    return Asked(_add(study, trial), factors, False)


def asked_before(study: optuna.Study, sampler: JointSampler) -> list[Asked]:
    """Return the searched candidates that the study holds, in the order in which they were asked for."""
    return [
        Asked(trial.number, sampler.space.candidate(trial.params, method=sampler.method), trial.state.is_finished())
        for trial in sampler.searched_trials(study)
    ]


def ask_candidate(study: optuna.Study, sampler: JointSampler) -> Asked:
    """Return the sampler's next candidate.

    Its trial enters the storage whole, in one write: a process that dies leaves it there or not at all, and a journal
    of 64 factors costs no more than one of 16.

    Args:
        study: The ledger.
        sampler: What chooses.

    Raises:
        SpaceExhaustedError: The sampler found nothing that is new.
    """
    proposal = sampler.propose(sampler.searched_trials(study))
    factors = sampler.space.candidate(proposal.params, method=sampler.method)
    parents = f" of {' and '.join(map(str, proposal.parents))}" if proposal.parents else ""
    trial = create_trial(
        state=TrialState.RUNNING,
        params=proposal.params,
        distributions=sampler.space.distributions(),
        user_attrs=_description(factors, f"generation {proposal.generation}: {proposal.operator}{parents}")
        | proposal.origin,
    )
    return Asked(_add(study, trial), factors, False)


def tell(study: optuna.Study, trial: int, measurements: Sequence[Measurement]) -> float:
    """Close a trial with its perplexity, or as failed with the first reason; return the perplexity, NaN if failed.

    Args:
        study: The ledger.
        trial: Number of one that was asked for and is still running.
        measurements: All of the candidate's, on the search documents.
    """
    value = perplexity(measurements)
    if math.isfinite(value):
        by_depth = {f"{entry.depth:.2f}": round(perplexity([entry]), 6) for entry in measurements}
        _annotate(study, trial, "perplexity_by_depth", dict(sorted(by_depth.items())))
        study.tell(trial, value)
        return value
    reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
    _annotate(study, trial, "failure", reasons[0] if reasons else f"perplexity is {value}")
    study.tell(trial, state=TrialState.FAIL)
    return math.nan


def _description(factors: RescaleFactors, name: str) -> dict[str, str | int | float | list[int]]:
    attributes: dict[str, str | int | float | list[int]] = {
        NAME: name,
        METHOD: factors.method,
        CANDIDATE: candidate_key(factors),
        "attention_temperature": factors.attention_temperature,
    }
    return attributes if factors.critical_dim is None else attributes | {"critical_dim": factors.critical_dim}


def _add(study: optuna.Study, trial: FrozenTrial) -> int:
    study.add_trial(trial)
    return study.get_trials(deepcopy=False)[-1].number  # there is one driver, so it is the last


def _annotate(study: optuna.Study, trial: int, key: str, value: object) -> None:
    storage = study._storage  # a trial that was not made by study.ask has no public way to be annotated
    storage.set_trial_user_attr(storage.get_trial_id_from_study_id_trial_number(study._study_id, trial), key, value)
