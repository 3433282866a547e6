"""Mixed-window fine-tuning: Hugging Face's Trainer on a stream of packs, each read with its window's rotation.

Shapes: B packs of a micro-batch, T tokens of each.
"""

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from accelerate import ParallelismConfig  # type: ignore[import-untyped]
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, TrainingArguments

from results.tuning import TrainingLog
from rope.factors import RescaleFactors
from workers.tuning.attention import choose_packed_attention
from workers.tuning.checkpoints import Checkpoint, Checkpoints
from workers.tuning.lora import check_lora_available, merged, with_adapters
from workers.tuning.packs import Pack
from workers.tuning.training_config import TrainingConfig
from workers.tuning.window_model import TrainableModel, loss_alone
from workers.tuning.window_trainer import PackDataset, StepWatch, WindowTrainer

SHARDS = {"version": 2, "state_dict_type": "SHARDED_STATE_DICT", "auto_wrap_policy": "TRANSFORMER_BASED_WRAP"}
"""FSDP2, layer by layer; a checkpoint has a file of each process, and any number of processes can read it."""


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a training run went."""

    num_steps: int
    """Optimizer steps taken in all."""
    first_step: int
    """The first of them that this process took; num_steps + 1 where none was left."""
    seconds: float
    """This process trained."""


def train(
    trainable: TrainableModel,
    packs: Sequence[Pack],
    factors: RescaleFactors,
    config: TrainingConfig,
    *,
    folder: Path,
    save_to: Path,
    micro_batch_size: int = 1,
    identity: Mapping[str, object] | None = None,
    resume: bool = False,
    device: str = "auto",
    progress: bool = True,
) -> TrainingResult:
    """Train a model on packs of both windows, keep checkpoints and a log, and save the weights.

    Several processes that torch's environment variables name (RANK, WORLD_SIZE, ...) train together: each calls this.

    Args:
        trainable: The model; its weights change, or are sharded, and are not for use afterwards.
        packs: The stream, of which the first ones are read; packs[i] is a pure function of i, and consecutive blocks
            of `micro_batch_size` packs have one window.
        factors: Of the long window; the short one is read with the model's own rotation unless they name its factors.
        config: Steps, optimizer, precision.
        folder: Gets `checkpoints/` and the training log; it exists.
        save_to: Gets config.json and safetensors, adapters merged, in the precision of the model's files; replaced.
        micro_batch_size: Packs of one forward.
        identity: What else must not differ when the run is taken up: the data, the model, as JSON has it.
        resume: Whether to go on from the newest complete checkpoint, if there is one.
        device: auto (CUDA if there is one), cpu or cuda.
        progress: Whether the terminal gets a progress bar.

    Returns:
        Steps and seconds.

    Raises:
        ValueError: There are too few packs; micro-batches do not divide evenly among the processes; the factors are of
            another model; there are checkpoints and `resume` is False, or they are another run's; the loss or gradient
            is no number: the newest checkpoint stays.
        OSError: The log or a checkpoint cannot be written; complete checkpoints stay.
    """
    began = monotonic()
    _check(packs, config, micro_batch_size)
    checkpoints = run_checkpoints(folder, factors, config, identity)
    found = checkpoints.starting_point(resume=resume)
    model = trainable.model
    model.requires_grad_(True)
    arguments = training_arguments(config, folder, micro_batch_size=micro_batch_size, device=device, progress=progress)
    _choose_attention(model, arguments, config)
    with loss_alone(model):
        tuned = _prepared(model, config)
        stream = PackDataset(packs, config.num_steps * config.micro_batches_per_step * micro_batch_size)
        trainer = WindowTrainer(tuned, arguments, stream, factors, checkpoints, config)
        _go(trainer, TrainingLog(folder), found)
    _save(trainer, model if config.lora is None else merged(tuned), trainable.saved_dtype, save_to)
    first = (found.step if found else 0) + 1
    return TrainingResult(num_steps=config.num_steps, first_step=first, seconds=monotonic() - began)


def run_checkpoints(
    folder: Path, factors: RescaleFactors, config: TrainingConfig, identity: Mapping[str, object] | None
) -> Checkpoints:
    """Return the checkpoints of a run.

    Args:
        folder, factors, config, identity: As `train`.
    """
    numbers = {
        f"factors.{name}": value for name, value in json.loads(factors.to_json()).items() if name != "provenance"
    }
    return Checkpoints(folder / "checkpoints", {**config.identity(), **numbers, **(identity or {})})


def training_arguments(
    config: TrainingConfig, folder: Path, *, micro_batch_size: int, device: str, progress: bool
) -> TrainingArguments:
    """Return the settings of Hugging Face's Trainer.

    Args:
        config, folder, micro_batch_size, device, progress: As `train`.

    Raises:
        ValueError: Micro-batches do not divide evenly among the processes.
    """
    num_processes = int(os.environ.get("WORLD_SIZE", "1"))
    num_readers, rest = divmod(num_processes, config.context_parallel)
    if rest or config.micro_batches_per_step % num_readers:
        raise ValueError(
            f"training.micro_batches_per_step must be a multiple of the {num_processes} processes / "
            f"{config.context_parallel} that share a pack, got {config.micro_batches_per_step}. Correct one of them."
        )
    on_cpu = device == "cpu" or not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        per_device_train_batch_size=micro_batch_size,
        gradient_accumulation_steps=config.micro_batches_per_step // num_readers,
        max_steps=config.num_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_steps,
        optim="adamw_torch",
        weight_decay=config.weight_decay,
        adam_beta1=config.betas[0],
        adam_beta2=config.betas[1],
        max_grad_norm=config.max_grad_norm,
        bf16=config.precision == "bfloat16" or (config.precision == "auto" and not on_cpu),
        use_cpu=on_cpu,
        seed=config.seed,
        logging_steps=config.log_steps,
        logging_nan_inf_filter=False,
        report_to=[*config.report_to, *(["tensorboard"] if find_spec("tensorboard") else [])] or "none",
        disable_tqdm=not progress,
        save_steps=config.checkpoint_steps,
        train_sampling_strategy="sequential",
        remove_unused_columns=False,
        dataloader_pin_memory=not on_cpu,
        ddp_backend="gloo" if on_cpu and num_processes > 1 else None,
        # Each process may be at another window, and none of the weights is ever left out
        ddp_broadcast_buffers=False,
        ddp_find_unused_parameters=False,
        parallelism_config=_parallelism(config, num_readers),
        **_sharding(config),
    )


def _parallelism(config: TrainingConfig, num_readers: int) -> ParallelismConfig | None:
    if config.context_parallel == 1:
        return None
    return ParallelismConfig(cp_size=config.context_parallel, dp_shard_size=num_readers)


def _sharding(config: TrainingConfig) -> dict[str, Any]:
    if not config.shard:
        return {}
    return {"fsdp": True, "fsdp_config": {**SHARDS, "activation_checkpointing": config.activation_checkpointing}}


def _check(packs: Sequence[Pack], config: TrainingConfig, micro_batch_size: int) -> None:
    needed = config.num_steps * config.micro_batches_per_step * micro_batch_size
    if len(packs) < needed:
        raise ValueError(
            f"the stream must have {needed} packs for {config.num_steps} steps of {config.micro_batches_per_step} x "
            f"{micro_batch_size}, got {len(packs)}. Lower training.num_steps, or make the stream longer."
        )
    if config.lora is not None:
        check_lora_available()
    if config.lora is not None and config.shard:
        raise ValueError("training.shard must be off with training.lora, got both. Adapters train on whole weights.")
    if config.shard and int(os.environ.get("WORLD_SIZE", "1")) == 1:
        raise ValueError("training.shard must have several processes to share weights, got one. Set it to false.")
    if config.context_parallel > 1 and not config.shard:
        raise ValueError(
            "training.context_parallel must come with training.shard, got it without: accelerate shares packs among "
            "processes that share weights. Set it."
        )


def _choose_attention(model: PreTrainedModel, arguments: TrainingArguments, config: TrainingConfig) -> None:
    if config.context_parallel > 1:
        return  # accelerate's ring attention takes the place of SDPA and knows no documents
    model.to(arguments.device)  # type: ignore[arg-type]
    choose_packed_attention(model, dtype=torch.bfloat16 if arguments.bf16 else None)


def _prepared(model: PreTrainedModel, config: TrainingConfig) -> nn.Module:
    """Return the model with what it is trained by: adapters, activations that are computed once more."""
    tuned = model if config.lora is None else with_adapters(model, config.lora, seed=config.seed)
    if config.activation_checkpointing and not config.shard:  # shards bring their own
        # The first name came with transformers 5.20, the second one goes with 6
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return tuned


def _go(trainer: WindowTrainer, log: TrainingLog, found: Checkpoint | None) -> None:
    """Train from a checkpoint on; one process writes."""
    writes = trainer.is_world_process_zero()
    if writes:
        trainer.checkpoints.clear()
        log.take_up(found.step if found else 0)
    trainer.add_callback(StepWatch(trainer, log if writes else None))
    try:
        trainer.train(resume_from_checkpoint=str(found.path) if found else None)
    finally:
        trainer.switch.restore()
    if writes:
        log.finish()


def _save(trainer: WindowTrainer, model: PreTrainedModel, dtype: torch.dtype, folder: Path) -> None:
    """Write the weights as transformers does; the folder takes its name when it is whole."""
    # The first process gets all weights of the shards, the others none
    gathered = StateDictOptions(full_state_dict=True, cpu_offload=True)
    found = get_model_state_dict(model, options=gathered) if trainer.is_fsdp_enabled else model.state_dict()
    if trainer.is_world_process_zero():
        aside = folder.with_name(f".{folder.name}.tmp")
        shutil.rmtree(aside, ignore_errors=True)
        weights = {name: _rounded(weight, dtype) for name, weight in found.items() if isinstance(weight, Tensor)}
        for name, source in model.all_tied_weights_keys.items():
            weights[name] = weights[source]  # weights that are one are written once
        if trainer.is_fsdp_enabled:
            model = _whole(model, weights)
        try:
            model.save_pretrained(aside, state_dict=weights)
        except SafetensorError as error:
            raise OSError(f"{folder} must be written whole, got: {error}. Free space and resume.") from error
        written = AutoConfig.from_pretrained(aside)
        written.dtype = dtype
        written.save_pretrained(aside)
        shutil.rmtree(folder, ignore_errors=True)
        aside.rename(folder)
    trainer.accelerator.wait_for_everyone()


def _rounded(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.to(dtype) if weight.is_floating_point() else weight


def _whole(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a model of its own with these weights; saving the sharded one would wait for the other processes."""
    with torch.device("meta"):
        whole: PreTrainedModel = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            deepcopy(model.config), attn_implementation="eager"
        )
    whole.load_state_dict(weights, assign=True)
    whole.tie_weights()
    whole.generation_config = model.generation_config
    return whole
