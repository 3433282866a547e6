"""`ropewalk report`: reads runs with their studies and writes what people would rather look at."""

import math
import sys
from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.exceptions import StorageInternalError
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from results.report import Record, check_replaceable, write_report
from results.report_parts.evaluation_record import is_evaluation, read_evaluation
from results.report_parts.record import Candidate, RunRecord, read_record
from results.report_parts.tuning_record import is_tuning, read_tuning
from results.run_directory import RunDirectory
from results.urls import without_password
from search.journal import JOURNAL
from search.samplers.joint import GENERATION, METHOD
from search.space import lambda_name
from search.study import CANDIDATE, open_storage


def write_run_report(runs: Sequence[str | Path], output: str | Path) -> None:
    """Write the report of runs, and say where it is.

    Args:
        runs: Run directories of searches, evaluations and fine-tunings, one at least; finished or not.
        output: HTML file to write; an older report there is replaced.

    Raises:
        ValueError: A folder holds no run or an empty one, a file is of another version, or output is another file.
        OSError: A file cannot be read or written to.
    """
    path = Path(output).expanduser().absolute()
    check_replaceable(path)
    records = [_read(Path(run).expanduser().absolute()) for run in dict.fromkeys(map(str, runs))]
    write_report(path, records)
    sys.stdout.write(f"report: {path}\n")


def read_run(path: Path) -> RunRecord:
    """Return a search with the candidates of its study; where that cannot be read, the record says so.

    Args:
        path: Run directory, absolute.

    Raises:
        ValueError, OSError: As `read_record`.
    """
    if not RunDirectory.holds_run(path):
        return read_record(path)  # says what must hold
    try:
        return read_record(path, candidates=read_candidates(path))
    except _StudyError as error:
        note = f"The study could not be read, so that factors and single candidates are left out: {error}."
        return read_record(path, notes=[note])


def read_candidates(path: Path) -> list[Candidate]:
    """Return the candidates of a run's study, in the order of its trials; the study may be written to meanwhile.

    Args:
        path: Run directory.

    Raises:
        _StudyError: The study is missing, or its storage cannot be read.
        ValueError: The run's configuration is damaged.
    """
    config = RunDirectory.read_config(path)
    storage = config.get("storage")
    if storage is None and not (path / JOURNAL).is_file():
        raise _StudyError(f"{JOURNAL} is missing")
    digest = (path / "config.sha256").read_text(encoding="utf-8").split()[0]
    try:
        opened = open_storage(None if storage is None else str(storage), run_dir=path)
        studies = optuna.study.get_all_study_summaries(opened)
        names = [study.study_name for study in studies if study.user_attrs.get("config_sha256") == digest]
        if len(names) != 1:
            raise _StudyError(f"its storage holds {len(names)} studies of this configuration")
        trials = optuna.load_study(study_name=names[0], storage=opened).get_trials(deepcopy=False)
    except (ValueError, KeyError, OSError, StorageInternalError, SQLAlchemyError) as error:
        raise _StudyError(without_password(" ".join(str(error).split()))) from error
    return [_candidate(trial) for trial in trials if CANDIDATE in trial.user_attrs]


def _read(path: Path) -> Record:
    if is_evaluation(path):
        return read_evaluation(path)
    return read_tuning(path) if is_tuning(path) else read_run(path)


class _StudyError(Exception):
    """A study that cannot be read; the rest of its run can."""


def _candidate(trial: FrozenTrial) -> Candidate:
    lambdas = sorted(name for name in trial.params if name.startswith("lambda_"))
    names = [lambda_name(pair) for pair in range(len(lambdas))]
    has_all = bool(names) and all(name in trial.params for name in names)
    critical_dim = trial.user_attrs.get("critical_dim")
    return Candidate(
        key=str(trial.user_attrs[CANDIDATE]),
        method=str(trial.user_attrs.get(METHOD, "")),
        values=tuple(float(trial.params[name]) for name in names) if has_all else None,
        attention_temperature=float(trial.user_attrs.get("attention_temperature", math.nan)),
        critical_dim=None if critical_dim is None else int(critical_dim),
        perplexity=float(trial.values[0]) if trial.values else math.nan,
        is_searched=GENERATION in trial.user_attrs,
        is_dropped=trial.state == TrialState.PRUNED,
    )
