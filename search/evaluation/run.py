"""A whole evaluation: contenders are measured in every way that was asked for, and tables show them side by side."""

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from needles.ruler import available_tasks
from results.evaluation import CONTENDERS
from results.measurement import candidate_key
from results.provenance import Provenance, gather
from results.report_parts.evaluation_record import PROVENANCE, earlier_processes, is_evaluation
from results.row_store import RowStore
from results.run_directory import RunDirectory
from results.run_lock import RunLock
from search.evaluation.answers import Answers
from search.evaluation.config import EvaluationConfig
from search.evaluation.contenders import read_contenders
from search.evaluation.harness import HarnessTasks
from search.evaluation.measure import Measure
from search.evaluation.perplexities import FORM_OF_TASK, Perplexities
from search.evaluation.retention import TASK as RETENTION
from search.evaluation.retention import RetentionCheck
from search.evaluation.tables import new_console, show
from search.evaluation.tasks import ONLY_NAMED, TASK_NAMES, build_tasks
from search.place import run_directory_path
from search.precision import resolved_precision
from search.preparation import model_fingerprint
from workers.accelerators import accelerators_in_use
from workers.evaluate import Contender
from workers.model import LoadedModel, load_model
from workers.precision import Precision

MAY_CHANGE = ("device", "batch_size", "run_dir")
"""Settings with which an evaluation may be taken up that it did not begin with."""
AnyMeasure = Measure[Any]

logger = logging.getLogger(__name__)


def run_evaluation(config: EvaluationConfig) -> dict[str, pd.DataFrame]:
    """Run an evaluation, or take up one that did not finish, and return its tables.

    A folder that holds an unfinished evaluation of the same configuration is taken up: nothing is measured twice.

    Args:
        config: The whole evaluation.

    Returns:
        The rows of each kind that was measured, by the name of its files, see `results.evaluation`.

    Raises:
        ValueError: Something that the user gave cannot be used.
        OSError: The folder cannot be written to.
    """
    console, started = new_console(), datetime.now(UTC)
    path = run_directory_path(config.run_dir, now=started, working_dir=Path.cwd(), home=Path.home())
    names = _task_names(config)
    if RunDirectory.holds_run(path) and not is_evaluation(path):
        raise ValueError(f"run directory {path} must hold an evaluation, got another run. Choose one with --run-dir.")
    config = replace(config, run_dir=str(path), dtype=resolved_precision(config.dtype, config.device, path))
    loaded = load_model(
        config.model,
        dtype=cast(Precision, config.dtype),
        device=config.device,
        gguf_file=config.gguf_file,
        original_length=config.original_length,
    )
    contenders = read_contenders(config, loaded.geometry)
    measures = _measures(config, loaded, names)
    with ExitStack() as stack:
        is_resumed = RunDirectory.holds_run(path)
        settings = asdict(config) | _fingerprints(config, contenders, measures)
        run = RunDirectory.create(path, settings, resume=is_resumed, may_change=MAY_CHANGE)
        stack.enter_context(RunLock(run.path))
        logger.info("results go to %s; after a kill the same command goes on with --run-dir %s", run.path, run.path)
        run.write_json(CONTENDERS, {name: json.loads(factors.to_json()) for name, factors in contenders})
        stores = {measure.name: RowStore(run.path, measure.name, measure.row_type) for measure in measures}
        earlier = earlier_processes(run.path)

        def write_provenance() -> None:
            run.write_json(PROVENANCE, asdict(_provenance(run, config, started)) | {"earlier": earlier})

        with _progress(console) as progress:
            if _measure(contenders, measures, stores, progress, begin=write_provenance):
                write_provenance()  # again, with the time of the end
        frames = {name: store.finish() for name, store in stores.items()}
    for measure in measures:
        for table in measure.tables(frames[measure.name], contenders):
            show(console, table)
    console.print(str(run.path), soft_wrap=True)
    return frames


def _measure(
    contenders: Sequence[Contender],
    measures: Sequence[AnyMeasure],
    stores: dict[str, RowStore[Any]],
    progress: Progress,
    *,
    begin: Callable[[], None],
) -> bool:
    """Measure what no store holds yet, after `begin`, and return whether there was any; each measure has a bar."""
    has_begun = False
    bars = [
        progress.add_task(measure.name, total=len(contenders) * measure.num_units, start=False) for measure in measures
    ]
    for measure, bar in zip(measures, bars, strict=True):
        store = stores[measure.name]
        known = {row.key for row in store.recover()}
        num_done = 0
        for contender in contenders:
            for step in measure.steps(contender, known):
                num_done += step.num_units
                if step.rows:
                    if not has_begun:
                        begin()
                        has_begun = True
                    store.add(step.rows)
                    progress.update(bar, completed=num_done)
                elif step.num_units:
                    progress.reset(bar, completed=num_done)  # what was known says nothing of the time left
                if step.told:
                    progress.update(bar, description=f"{contender.name}, {step.told}")
    return has_begun


def _provenance(run: RunDirectory, config: EvaluationConfig, started: datetime) -> Provenance:
    """Return with what, where and when this process measures."""
    return gather(
        seed=config.seed,
        started=started,
        accelerators=[accelerator.name for accelerator in accelerators_in_use()],
        hashes={"config.yaml": run.config_sha256},
    )


def _measures(config: EvaluationConfig, loaded: LoadedModel, names: Sequence[str]) -> list[AnyMeasure]:
    """Return what is to be measured; of what nobody named, what cannot be is left out with a warning."""
    found: list[AnyMeasure] = []
    samples = build_tasks(config, loaded, [name for name in names if name in TASK_NAMES])
    if samples:
        found.append(
            Answers(loaded, samples, batch_size=config.batch_size, effective_threshold=config.effective_threshold)
        )
    builders: list[tuple[str, Callable[[], AnyMeasure]]] = []
    forms = [FORM_OF_TASK[name] for name in names if name in FORM_OF_TASK]
    if forms:
        builders.append(("perplexity", lambda: Perplexities.build(config, loaded, forms)))
    if RETENTION in names:
        builders.append((RETENTION, lambda: RetentionCheck.build(config, loaded)))
    for name, build in builders:
        try:
            found.append(build())
        except ValueError as error:
            if config.task_names:
                raise
            logger.warning("%s is left out: %s", name, error)
    if config.harness_names:
        found.append(HarnessTasks.build(config, loaded))
    if not found:
        raise ValueError("an evaluation must have a task that can be built, got none. Ask for longer lengths.")
    return found


def _fingerprints(
    config: EvaluationConfig, contenders: Sequence[Contender], measures: Sequence[AnyMeasure]
) -> dict[str, object]:
    """Return what an evaluation that is taken up must share with its beginning, whatever its files are called."""
    return {
        "model_fingerprint": model_fingerprint(config.model),
        "contenders": {contender.name: candidate_key(contender.factors) for contender in contenders},
        "samples_sha256": {measure.name: measure.fingerprint() for measure in measures},
    }


def _task_names(config: EvaluationConfig) -> list[str]:
    """Return the tasks to build; the log says which are left out of all of them, and why."""
    available = available_tasks(config.squad, config.hotpotqa)
    known = [*TASK_NAMES, *FORM_OF_TASK, RETENTION]
    unknown = [name for name in config.task_names if name not in known]
    if unknown:
        raise ValueError(f"--tasks must be among {', '.join(known)}, got {', '.join(unknown)}. Correct it.")
    for name in config.task_names:
        if name in available.left_out:
            raise ValueError(f"task {name} cannot be built, it {available.left_out[name]}. Give it, or drop the task.")
    if config.task_names:
        return config.task_names
    if config.harness_names:
        return []
    for name, reason in available.left_out.items():
        logger.warning("%s is left out, and is in no average: it %s", name, reason)
    return [name for name in known if name not in available.left_out and name not in ONLY_NAMED]


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)
