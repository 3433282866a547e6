"""A whole fine-tuning: what can be checked is checked, then measured, trained, saved, and measured again."""

import gc
import json
import logging
from contextlib import ExitStack
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from rich.console import Console

from results.atomic_file import replacing, write_text
from results.export.config_forms import CONFIG
from results.export.source_files import read_config
from results.export.transformers_config import export_transformers
from results.measurement import candidate_key
from results.provenance import gather
from results.run_directory import RunDirectory
from results.run_lock import RunLock
from results.tuning import read_training_log
from results.tuning_outcome import OUTCOME, Kept, Measured, Outcome, measured_from, measured_json
from search.finetune.config import MAY_CHANGE, FinetuneConfig, resolved_settings
from search.finetune.outcome import measure, measure_short, short_window
from search.finetune.preparation import Prepared, make_packs, prepare, source_model, tokens_folder
from search.finetune.showing import show
from search.place import run_directory_path
from search.precision import resolved_precision
from workers.accelerators import accelerators_in_use
from workers.model import LoadedModel, load_model
from workers.precision import DTYPES, Precision
from workers.tuning.kept_logits import divergence
from workers.tuning.trainer import train
from workers.tuning.window_model import TrainableModel, load_trainable

MODEL = "model"
"""Folder of the run directory with what the training made."""
TRAINED = "trained.json"
"""Written when that folder is whole."""
BEFORE, BEFORE_LOGITS = "before.json", "before.npy"
"""What was measured of the untuned model; the second is removed at the end."""

logger = logging.getLogger(__name__)


def run_finetune(config: FinetuneConfig) -> Outcome:
    """Fine-tune a model, or take up a fine-tuning that did not finish, and return what it did.

    The run directory holds `model/`, which plain transformers loads, the training log, `factors.json`, `outcome.json`
    and `provenance.json`. One that holds a finished fine-tuning of the same configuration is shown again.

    Args:
        config: The whole fine-tuning.

    Raises:
        ValueError: Something that the user gave cannot be used, or the loss became NaN.
        OSError: The run directory cannot be written to.
    """
    started, console = datetime.now(UTC), Console()
    path = run_directory_path(config.run_dir, now=started, working_dir=Path.cwd(), home=Path.home())
    is_resumed = RunDirectory.holds_run(path)
    if not is_resumed:
        RunDirectory.check_free(path)
    config = replace(config, dtype=resolved_precision(config.dtype, config.device, path))
    prepared = prepare(config, path)
    with ExitStack() as stack:
        run = RunDirectory.create(
            path, resolved_settings(config, prepared.facts), resume=is_resumed, may_change=MAY_CHANGE
        )
        stack.enter_context(RunLock(run.path))
        if (run.path / OUTCOME).is_file():
            logger.info("the fine-tuning is finished; this is what it did")
        else:
            logger.info("results go to %s", run.path)
            outcome = _finetuned(config, prepared, run)
            _write_provenance(run, config, started)
            run.write_text(OUTCOME, outcome.to_json())
            (run.path / BEFORE_LOGITS).unlink(missing_ok=True)
    outcome = Outcome.from_json((run.path / OUTCOME).read_text(encoding="utf-8"))
    show(outcome, console)
    return outcome


class _Trained(NamedTuple):
    """How the training went, as the training log tells it."""

    num_tokens: dict[str, int]
    seconds: float


def _finetuned(config: FinetuneConfig, prepared: Prepared, run: RunDirectory) -> Outcome:
    factors, yardstick = prepared.factors, prepared.yardstick
    run.write_text("factors.json", factors.long.to_json())
    before = _measured_before(config, prepared, run)
    if not (run.path / TRAINED).is_file():
        _train(config, prepared, run)
        _finish_model(prepared, run.path / MODEL)
        run.write_json(TRAINED, {"num_steps": config.training.num_steps})
    logger.info("measuring the tuned model")
    loaded = _load(config, prepared, str(run.path / MODEL), gguf_file=None)
    after = measure(loaded, factors, yardstick)
    moved = divergence(np.load(run.path / BEFORE_LOGITS), short_window(loaded, factors, yardstick))
    served = factors.short.with_temperature(factors.long.attention_temperature)
    is_served_alike = candidate_key(served) == candidate_key(factors.short)
    plain = None if is_served_alike else measure_short(loaded, served, yardstick)
    trained = _trained(run.path)
    return Outcome(
        model=config.model,
        method=factors.long.method,
        candidate=candidate_key(factors.long),
        original_length=factors.long.original_length,
        target_length=factors.long.target_length,
        before=before,
        after=after,
        after_plain_transformers=plain,
        kept=Kept(
            mean_divergence=moved.sum_divergence / moved.num_positions,
            same_top=moved.num_same_top / moved.num_positions,
            num_positions=moved.num_positions,
        ),
        num_steps=config.training.num_steps,
        num_tokens=trained.num_tokens,
        training_seconds=round(trained.seconds, 3),
        run_directory=str(run.path),
    )


def _measured_before(config: FinetuneConfig, prepared: Prepared, run: RunDirectory) -> Measured:
    """Measure the untuned model; an earlier process may have done so."""
    if (run.path / BEFORE).is_file() and (run.path / BEFORE_LOGITS).is_file():
        return measured_from(json.loads((run.path / BEFORE).read_text(encoding="utf-8")))
    logger.info("measuring the untuned model")
    loaded = _load(config, prepared, config.model, gguf_file=config.gguf_file)
    found = measure(loaded, prepared.factors, prepared.yardstick)
    with replacing(run.path / BEFORE_LOGITS) as temporary, temporary.open("wb") as file:
        np.save(file, short_window(loaded, prepared.factors, prepared.yardstick))
    run.write_json(BEFORE, measured_json(found))
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # the training needs the room
    return found


def _train(config: FinetuneConfig, prepared: Prepared, run: RunDirectory) -> None:
    if config.workers > 0:
        config = _from_anywhere(config)
    load = partial(_load_trainable, config.model, config.gguf_file, config.weights)
    identity = {name: prepared.facts[name] for name in ("model_fingerprint", "packs")}
    size = prepared.mixture.micro_batch_size
    logger.info("training %d steps", config.training.num_steps)
    if config.workers == 0:
        train(
            load(),
            prepared.packs,
            prepared.factors.long,
            config.training,
            folder=run.path,
            save_to=run.path / MODEL,
            micro_batch_size=size,
            identity=identity,
            resume=True,
            device=config.device,
        )
        return
    from workers.tuning.cluster import TrainingJob, TrainingWorkers, train_on_cluster  # imports ray

    job = TrainingJob(
        load=load,
        make_packs=partial(make_packs, config, prepared.mixture, prepared.model.tokenizer),
        factors=prepared.factors.long,
        config=config.training,
        folder=run.path,
        save_to=run.path / MODEL,
        micro_batch_size=size,
        identity=identity,
        device=config.device,
    )
    workers = TrainingWorkers(
        num_workers=config.workers,
        gpus_per_worker=config.gpus_per_worker,
        cpus_per_worker=config.cpus_per_worker,
        max_failures=config.retries,
    )
    train_on_cluster(job, workers, resume=True)


def _from_anywhere(config: FinetuneConfig) -> FinetuneConfig:
    """Return the same with absolute paths: Ray Train's workers start in folders of their own, in submitted jobs too."""
    model = Path(config.model)
    sources = {name: Path(path).absolute() for name, path in config.sources.items()}
    return replace(
        config,
        model=str(model.absolute()) if model.exists() else config.model,
        data=",".join(f"{name}={path}" for name, path in sources.items()),
        tokens=str(tokens_folder(config)),
    )


def _load_trainable(model: str, gguf_file: str | None, weights: str) -> TrainableModel:
    trainable = load_trainable(model, gguf_file=gguf_file)
    return trainable if weights == "model" else replace(trainable, saved_dtype=DTYPES[cast(Precision, weights)])


def _load(config: FinetuneConfig, prepared: Prepared, path: str, *, gguf_file: str | None) -> LoadedModel:
    return load_model(
        path,
        dtype=cast(Precision, config.dtype),
        device=config.device,
        gguf_file=gguf_file,
        original_length=prepared.factors.long.original_length,
    )


def _finish_model(prepared: Prepared, folder: Path) -> None:
    """Put the tokenizer and a config.json with both lists beside the weights."""
    prepared.model.tokenizer.save_pretrained(folder)
    source = source_model(read_config(folder / CONFIG), prepared.model)
    export = export_transformers(prepared.factors.long, "dual", source)
    for name, text in export.files.items():
        write_text(folder / name, text)
    for note in export.notes:
        logger.info("note: %s", note)


def _trained(folder: Path) -> _Trained:
    log = read_training_log(folder)
    num_tokens = log.groupby("window")["num_tokens"].sum()
    seconds = log.drop_duplicates("step")["seconds"].sum()
    return _Trained({str(window): int(num) for window, num in num_tokens.items()}, float(seconds))


def _write_provenance(run: RunDirectory, config: FinetuneConfig, started: datetime) -> None:
    """Write with what, where and when; of a fine-tuning that was taken up, of its last process."""
    provenance = gather(
        seed=config.seed,
        started=started,
        accelerators=[accelerator.name for accelerator in accelerators_in_use()],
        hashes={"config.yaml": run.config_sha256},
    )
    run.write_json("provenance.json", asdict(provenance))
