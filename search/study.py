"""The ledger: one Optuna study in which every formula and every searched candidate is a trial."""

import math
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from optuna.trial import Trial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from results.measurement import Measurement, perplexity
from rope.factors import RescaleFactors
from search.samplers.generational import METHOD, Space
from search.space import lambda_name

JOURNAL = "study.journal"
"""Name of the journal file in the run directory."""


def open_storage(url: str | None, *, study_name: str) -> BaseStorage | None:
    """Return the storage at an Optuna URL; None for None, which stands for a journal file in the run directory.

    Raises:
        ValueError: The URL is none, its storage cannot be reached, or it already holds a study of this name.
    """
    if url is None:
        return None
    try:
        storage = optuna.storages.get_storage(url)
        names = optuna.get_all_study_names(storage)
    except (ImportError, ValueError, OSError, optuna.exceptions.StorageInternalError, SQLAlchemyError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"--storage must be a URL that Optuna can open, got an error: {reason}. Correct it.") from None
    if study_name in names:
        raise ValueError(
            f"the storage must not hold a study {study_name!r} yet, got one. Choose another --run-dir or --storage."
        )
    return storage


def open_study(name: str, *, storage: BaseStorage | None, run_dir: Path) -> optuna.Study:
    """Return a new study that minimises perplexity, in a storage or else in a journal file of the run directory."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    journal = run_dir / JOURNAL
    return optuna.create_study(
        study_name=name, storage=JournalStorage(JournalFileBackend(str(journal))) if storage is None else storage
    )


def ask_formula(study: optuna.Study, factors: RescaleFactors) -> Trial:
    """Return a trial for a formula's factors, which need not lie inside the space that is searched.

    Args:
        study: The ledger.
        factors: The formula's; its `method` names the trial.
    """
    study.enqueue_trial({}, user_attrs={METHOD: factors.method})
    trial = study.ask()
    for pair, value in enumerate(factors.values):
        trial.suggest_float(lambda_name(pair), value, value)
    _describe(trial, factors)
    return trial


def ask_candidate(study: optuna.Study, space: Space, *, method: str) -> tuple[Trial, RescaleFactors]:
    """Return a trial whose parameters the study's sampler chose, and the factors that they stand for.

    Args:
        study: The ledger.
        space: The space that the sampler searches.
        method: Name of the search.

    Raises:
        SpaceExhaustedError: The sampler found nothing that is new.
    """
    trial = study.ask(space.distributions())
    factors = space.candidate(trial.params, method=method)
    trial.set_user_attr(METHOD, method)
    _describe(trial, factors)
    return trial, factors


def tell(study: optuna.Study, trial: Trial, measurements: Sequence[Measurement]) -> float:
    """Close a trial with its perplexity, or as failed with the first reason; return the perplexity, NaN if failed.

    Args:
        study: The ledger.
        trial: One that was asked for and is still running.
        measurements: All of the candidate's, on the search documents.
    """
    value = perplexity(measurements)
    if math.isfinite(value):
        study.tell(trial, value)
        return value
    reasons = [measurement.failure for measurement in measurements if measurement.failure is not None]
    trial.set_user_attr("failure", reasons[0] if reasons else f"perplexity is {value}")
    study.tell(trial, state=TrialState.FAIL)
    return math.nan


def _describe(trial: Trial, factors: RescaleFactors) -> None:
    trial.set_user_attr("attention_temperature", factors.attention_temperature)
    if factors.critical_dim is not None:
        trial.set_user_attr("critical_dim", factors.critical_dim)
