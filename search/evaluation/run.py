"""A whole evaluation: factors and formulas answer the same samples, and a table shows them side by side."""

import hashlib
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from needles.corpus import NOISE, read_split
from needles.grid import TASK as GRID
from needles.grid import build_grid
from needles.metrics import string_match_all
from needles.passkey import TASK as PASSKEY
from needles.passkey import build_passkey_samples
from needles.prompts import RULER_BASE, chat_prompt
from needles.ruler import TASKS, available_tasks, build_samples
from needles.sample import Sample
from needles.tokenizer import Tokenizer
from results.evaluation import SampleScore, ScoreStore, mean_scores
from results.measurement import candidate_key
from results.run_directory import RunDirectory
from results.run_lock import RunLock
from rope.factors import load_factors
from rope.methods import METHODS, PAPER_TEMPERATURE
from rope.temperature import attention_temperature
from search.evaluation_config import EvaluationConfig
from search.place import run_directory_path
from search.precision import resolved_precision
from search.preparation import model_fingerprint
from workers.evaluate import Contender, Metric, score_samples
from workers.geometry import RopeGeometry
from workers.model import LoadedModel, load_model
from workers.precision import Precision

MAY_CHANGE = ("device", "batch_size")
"""Settings with which an evaluation may be taken up that it did not begin with."""
DEPTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Depths of the needle grid."""
BEYOND = "*"
"""Marks a length beyond the target of a contender's factors."""

logger = logging.getLogger(__name__)


def run_evaluation(config: EvaluationConfig) -> pd.DataFrame:
    """Run an evaluation, or take up one that did not finish, and return the means.

    A folder that holds an unfinished evaluation of the same configuration is taken up: no sample is answered twice.

    Args:
        config: The whole evaluation.

    Returns:
        As `mean_scores`.

    Raises:
        ValueError: Something that the user gave cannot be used.
        OSError: The folder cannot be written to.
    """
    console = Console()
    path = run_directory_path(config.run_dir, now=datetime.now(UTC), working_dir=Path.cwd(), home=Path.home())
    names = _task_names(config)
    config = replace(config, dtype=resolved_precision(config.dtype, config.device, path))
    loaded = load_model(
        config.model,
        dtype=cast(Precision, config.dtype),
        device=config.device,
        gguf_file=config.gguf_file,
        original_length=config.original_length,
    )
    contenders = _contenders(config, loaded.geometry)
    samples = _all_samples(config, loaded, names)
    with ExitStack() as stack:
        is_resumed = RunDirectory.holds_run(path)
        settings = asdict(config) | _fingerprints(config, contenders, samples)
        run = RunDirectory.create(path, settings, resume=is_resumed, may_change=MAY_CHANGE)
        stack.enter_context(RunLock(run.path))
        logger.info("results go to %s", run.path)
        store = ScoreStore(run.path)
        known = {score.key for score in store.recover()}
        with _progress(console) as progress:
            for scores in _answered(config, loaded, contenders, samples, known, progress):
                store.add(scores)
        means = mean_scores(store.finish())
    _show(means, contenders, console)
    console.print(str(run.path), soft_wrap=True)
    return means


def _answered(
    config: EvaluationConfig,
    loaded: LoadedModel,
    contenders: Sequence[Contender],
    samples: Sequence[Sample],
    known: set[tuple[str, str, int, str]],
    progress: Progress,
) -> Iterator[list[SampleScore]]:
    """Yield the scores of what is not known yet; the bar tells how far that is."""
    bar = progress.add_task("", total=len(contenders) * len(samples))
    for contender in contenders:
        left = [sample for sample in samples if (contender.name, sample.task, sample.length, sample.id) not in known]
        progress.advance(bar, len(samples) - len(left))
        for scores in score_samples(loaded, contender, left, metric_of=_metric, batch_size=config.batch_size):
            progress.update(bar, description=f"{contender.name}, {scores[0].task}, {scores[0].length} tokens")
            progress.advance(bar, len(scores))
            yield scores


def _fingerprints(
    config: EvaluationConfig, contenders: Sequence[Contender], samples: Sequence[Sample]
) -> dict[str, object]:
    """Return what an evaluation that is taken up must share with its beginning, whatever its files are called."""
    digest = hashlib.sha256()
    for sample in samples:
        digest.update(f"{sample.task} {sample.length} {sample.id} ".encode() + sample.token_ids.tobytes())
    return {
        "model_fingerprint": model_fingerprint(config.model),
        "contenders": {contender.name: candidate_key(contender.factors) for contender in contenders},
        "samples_sha256": digest.hexdigest(),
    }


def _task_names(config: EvaluationConfig) -> list[str]:
    """Return the tasks to build; the log says which are left out of all of them, and why."""
    available = available_tasks(config.squad, config.hotpotqa)
    known = [*TASKS, GRID, PASSKEY]
    unknown = [name for name in config.task_names if name not in known]
    if unknown:
        raise ValueError(f"--tasks must be among {', '.join(known)}, got {', '.join(unknown)}. Correct it.")
    for name in config.task_names:
        if name in available.left_out:
            raise ValueError(f"task {name} cannot be built, it {available.left_out[name]}. Give it, or drop the task.")
    if not config.task_names:
        for name, reason in available.left_out.items():
            logger.warning("%s is left out, and is in no average: it %s", name, reason)
    return config.task_names or [*available.names, GRID, PASSKEY]


def _contenders(config: EvaluationConfig, geometry: RopeGeometry) -> list[Contender]:
    """Return the formulas for the longest length, then the files; a length beyond a file's target is warned about."""
    longest = max(config.token_lengths)
    original_length = config.original_length or geometry.original_length
    found = [_formula(name, geometry, original_length, max(longest, original_length)) for name in config.method_names]
    for path in config.factor_files:
        file = Path(path) / "factors.json" if Path(path).is_dir() else Path(path)
        factors = load_factors(
            file,
            rotary_dim=geometry.rotary_dim,
            base=geometry.base,
            original_length=original_length,
        )
        found.append(Contender(file.parent.name if file.name == "factors.json" else file.stem, factors))
        if factors.target_length < longest:
            logger.warning("%s is for %d tokens, and lengths beyond are marked %s", file, factors.target_length, BEYOND)
    names = [contender.name for contender in found]
    if len(set(names)) < len(names):
        raise ValueError(f"contenders must have distinct names, got {', '.join(names)}. Rename a file or its folder.")
    return found


def _formula(name: str, geometry: RopeGeometry, original_length: int, target_length: int) -> Contender:
    if name not in METHODS:
        raise ValueError(f"--methods must be among {', '.join(METHODS)}, got {name}. Correct it.")
    factors = METHODS[name](
        geometry.rotary_dim, geometry.base, original_length=original_length, target_length=target_length
    )
    scale = target_length / original_length
    temperature = attention_temperature(PAPER_TEMPERATURE[name], scale=scale, original_length=original_length)
    return Contender(name, factors.with_temperature(temperature))


def _all_samples(config: EvaluationConfig, loaded: LoadedModel, names: Sequence[str]) -> list[Sample]:
    """Return every sample; of tasks that nobody named, those that cannot be built at all lengths are left out."""
    if config.corpus is not None:
        read_split(config.corpus, "heldout", num_characters=1)  # a corpus that cannot be read is no task's fault
    found: list[Sample] = []
    for name in names:
        try:
            found += [sample for length in config.token_lengths for sample in _samples(config, loaded, name, length)]
        except ValueError as error:
            if config.task_names:
                raise
            logger.warning("%s is left out, and is in no average: %s", name, error)
    if not found:
        raise ValueError("an evaluation must have a task that can be built, got none. Ask for longer lengths.")
    return found


def _samples(config: EvaluationConfig, loaded: LoadedModel, name: str, length: int) -> list[Sample]:
    rng = np.random.default_rng([config.seed, zlib.crc32(name.encode()), length])
    tokenizer = cast(Tokenizer, loaded.tokenizer)
    is_chat = config.prompt == "chat"
    if name == PASSKEY:
        return build_passkey_samples(tokenizer, num_samples=config.num_samples, length=length, rng=rng, is_chat=is_chat)
    corpus = NOISE if config.corpus is None else config.corpus
    if name == GRID:
        return build_grid(
            tokenizer,
            corpus,
            lengths=[length],
            depths=DEPTHS,
            num_per_cell=config.num_samples,
            rng=rng,
            prompt=chat_prompt(tokenizer) if is_chat else RULER_BASE,
        )
    return build_samples(
        name,
        tokenizer,
        num_samples=config.num_samples,
        length=length,
        rng=rng,
        corpus=corpus,
        is_chat=is_chat,
        squad=config.squad,
        hotpotqa=config.hotpotqa,
    )


def _metric(task: str) -> Metric:
    return TASKS[task].metric if task in TASKS else string_match_all


def _progress(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _show(means: pd.DataFrame, contenders: Sequence[Contender], console: Console) -> None:
    """Print a row for each task and contender, a column for each length, percent."""
    lengths = sorted(means["length"].unique())
    targets = {contender.name: contender.factors.target_length for contender in contenders}
    table = Table(title="Answers found, percent", show_edge=False)
    for name in ("task", "factors"):
        table.add_column(name)
    for length in lengths:
        table.add_column(f"{length}", justify="right")
    tasks = list(dict.fromkeys(means["task"]))
    for task in [*tasks, "all"]:
        for contender in contenders:
            rows = means[means["contender"] == contender.name]
            rows = rows if task == "all" else rows[rows["task"] == task]
            by_length = rows.groupby("length")["mean"].mean()
            cells = [
                f"{100 * by_length[length]:.1f}" + (BEYOND if length > targets[contender.name] else "")
                for length in lengths
            ]
            table.add_row(task, contender.name, *cells)
    missing = [name for name in [*TASKS, GRID, PASSKEY] if name not in tasks]
    table.caption = (
        f"{BEYOND}: longer than the factors are for. all: mean over the {len(tasks)} tasks above; "
        f"not measured: {', '.join(missing) or 'none'}."
    )
    console.print(table)
