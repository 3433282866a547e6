"""Hugging Face's Trainer on a stream of packs: each micro-batch read with its window's rotation, each step watched."""

import shutil
from collections.abc import Iterator, Sequence
from math import isfinite
from time import monotonic
from typing import Any

import torch
from accelerate.utils import (  # type: ignore[import-untyped]
    DistributedType,
    FullyShardedDataParallelPlugin,
)
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.distributed.fsdp import MixedPrecisionPolicy
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from results.tuning import TrainingLog, TrainingRow
from rope.factors import RescaleFactors
from workers.tuning.attention import packed_inputs
from workers.tuning.checkpoints import Checkpoints
from workers.tuning.packs import NOT_SCORED, Pack, Window
from workers.tuning.steps import StepSums, WindowSum, per_token
from workers.tuning.training_config import TrainingConfig
from workers.tuning.window_model import WindowSwitch

Batch = dict[str, Any]
"""Inputs of the model by name, beside `window` and `first_pack` of the micro-batch; what the Trainer hands round."""


class PackDataset(Dataset[tuple[int, Pack]]):
    """The first packs of a stream, each with its index.

    Args:
        packs: The stream.
        num_packs: How many of it.
    """

    def __init__(self, packs: Sequence[Pack], num_packs: int) -> None:
        self._packs = packs
        self._num_packs = num_packs

    def __len__(self) -> int:
        return self._num_packs

    def __getitem__(self, index: int) -> tuple[int, Pack]:
        return index, self._packs[index]


def collate(samples: Sequence[tuple[int, Pack]]) -> Batch:
    """Return the inputs of a micro-batch, on the CPU.

    Args:
        samples: Packs of one window with their indices.

    Raises:
        ValueError: The windows are mixed.
    """
    indices, packs = zip(*samples, strict=True)
    windows = {pack.window for pack in packs}
    if len(windows) != 1:
        raise ValueError(
            f"a micro-batch must have packs of one window, got both for the packs from {indices[0]} on. Give stream "
            "and training the same micro-batch size."
        )
    return {**packed_inputs(packs, torch.device("cpu")), "window": windows.pop(), "first_pack": indices[0]}


class WindowTrainer(Trainer):
    """Hugging Face's Trainer, whose micro-batches are each read with their window's rotation.

    The loss is the sum over all scored tokens of a step, over all micro-batches and processes, by their number.

    Args:
        model: What `loss_alone` was applied to, or adapters round it.
        arguments: Of the Trainer.
        packs: The stream.
        factors: Of the long window.
        checkpoints: Where they go.
        config: The run's.
    """

    def __init__(
        self,
        model: nn.Module,
        arguments: TrainingArguments,
        packs: PackDataset,
        factors: RescaleFactors,
        checkpoints: Checkpoints,
        config: TrainingConfig,
    ) -> None:
        own: Any = model.config
        uses_cache = getattr(own, "use_cache", None)
        super().__init__(model=model, args=arguments, train_dataset=packs, data_collator=collate)
        if uses_cache is not None:
            own.use_cache = uses_cache  # the Trainer turns it off, and what is saved would say so
        self.remove_callback(PrinterCallback)
        self.switch = WindowSwitch(model, factors)  # type: ignore[arg-type]
        """Between the windows."""
        self.sums = StepSums()
        """Of the step under way, in this process."""
        self.grad_norm = 0.0
        """Of the step under way, before clipping."""
        self.shown: dict[Window, list[WindowSum]] = {}
        """Steps since the last line of the terminal."""
        self.checkpoints = checkpoints
        """Where they go."""
        self._num_kept = config.num_checkpoints
        self._divisor = torch.ones(())
        self.loss_is_scaled_for_ga = True
        if self.is_fsdp_enabled and arguments.bf16:
            # accelerate's own would round gradients and the loss to bfloat16 between processes
            self.accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
                param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32
            )

    def create_accelerator_and_postprocess(self) -> None:
        """Make accelerate shard on CPUs too, where it leaves the setting without effect and without a word."""
        super().create_accelerator_and_postprocess()
        state = self.accelerator.state
        if self.args.fsdp and state.distributed_type == DistributedType.MULTI_CPU:
            state.fsdp_plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
            state.distributed_type = DistributedType.FSDP
            self.is_fsdp_enabled = True
        assert self.is_fsdp_enabled == bool(self.args.fsdp), "weights are sharded where that was asked for"

    def get_batch_samples(
        self, epoch_iterator: Iterator[Batch], num_batches: int, device: torch.device
    ) -> tuple[list[Batch], Tensor]:
        """Return the micro-batches of a step, and the number of tokens that all processes score in it."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        counts = torch.stack([_num_scored(batch["labels"]) for batch in batches]).to(device)
        num_tokens = self.accelerator.gather(counts.sum()[None]).sum() / self.get_cp_size()
        # Gradients are averaged over processes afterwards
        self._divisor = (num_tokens / self.args.world_size).float()
        return batches, num_tokens

    def training_step(self, model: nn.Module, inputs: Batch, num_items_in_batch: Tensor | int | None = None) -> Tensor:
        """Turn the model to the micro-batch's window, forward and backward."""
        self.switch.turn_to(inputs["window"])
        return super().training_step(model, inputs, num_items_in_batch)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Batch,
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the micro-batch's part of the step's loss."""
        given = {name: value for name, value in inputs.items() if name not in ("window", "first_pack")}
        if self.get_cp_size() > 1:
            if len(given.pop("cu_seq_lens_q")) != len(given["input_ids"]) + 1:
                raise ValueError(
                    "training.context_parallel must share packs that attend to themselves whole, got a pack of several "
                    "documents. Set mixture.long_share to 1 and mixture.long_mask to full, or context_parallel to 1."
                )
            given = {name: value for name, value in given.items() if not name.startswith(("cu_seq", "max_length"))}
        loss: Tensor = model(**given, divisor=self._divisor)
        scored = (
            (given["shift_labels"] != NOT_SCORED).sum() if "shift_labels" in given else _num_scored(given["labels"])
        )
        self.sums.add(inputs["window"], inputs["first_pack"], loss.detach() * self._divisor, scored)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the loss of each window to a line for the terminal and `report_to`."""
        if "loss" in logs:
            for window, sums in self.shown.items():
                logs[f"loss_{window}"] = per_token(sums)
            self.shown = {}
        super().log(logs, start_time)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Tensor | None = None) -> Tensor:
        norm: Tensor = super()._get_grad_norm(model, grad_norm)  # type: ignore[no-untyped-call]
        self.grad_norm = float(norm)
        return norm

    def _save_checkpoint(self, model: nn.Module, trial: object) -> None:
        """Write a checkpoint, count it once it is whole, and remove older ones."""
        step = self.state.global_step
        try:
            super()._save_checkpoint(model, None)
            self.accelerator.wait_for_everyone()
            if self.is_world_process_zero():
                self.checkpoints.mark(step)
        except (OSError, RuntimeError, SafetensorError) as error:
            shutil.rmtree(self.checkpoints.path(step), ignore_errors=True)
            raise OSError(f"{_not_written(step, error)} {_what_stays(self.checkpoints)}") from error
        if self.is_world_process_zero():
            self.checkpoints.prune(self._num_kept)
        self.accelerator.wait_for_everyone()


class StepWatch(TrainerCallback):
    """Checks each step's loss and gradient before the weights change, and writes it to the log after.

    Args:
        trainer: Whose steps.
        log: Where they go; None in all processes but the first.
    """

    def __init__(self, trainer: WindowTrainer, log: TrainingLog | None) -> None:
        self._trainer = trainer
        self._log = log
        self._sums: dict[Window, WindowSum] = {}
        self._learning_rate = 0.0
        self._began = monotonic()

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Start the clock of the first step."""
        self._began = monotonic()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Refuse a step whose loss or gradient is no number."""
        trainer, step = self._trainer, state.global_step + 1
        accelerator = trainer.accelerator
        try:
            self._sums = trainer.sums.total(args.device, reduce=accelerator.reduce, gather=accelerator.gather)
            if not isfinite(trainer.grad_norm):
                raise ValueError(f"the gradient must be a number, got a norm of {trainer.grad_norm}")
        except ValueError as error:
            raise ValueError(
                f"{error} at step {step}. {_what_stays(trainer.checkpoints)} Lower training.learning_rate or raise "
                "training.warmup, or look at these packs."
            ) from error
        self._learning_rate = float(trainer.lr_scheduler.get_last_lr()[0])  # type: ignore[union-attr]

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Write the step's rows."""
        now = monotonic()
        for window, summed in self._sums.items():
            self._trainer.shown.setdefault(window, []).append(summed)
        rows = [
            TrainingRow(
                step=state.global_step,
                window=window,
                sum_nll=summed.sum_nll,
                num_tokens=summed.num_tokens,
                learning_rate=self._learning_rate,
                grad_norm=self._trainer.grad_norm,
                seconds=now - self._began,
            )
            for window, summed in self._sums.items()
        ]
        if self._log is not None:
            self._log.add(rows)
        self._began = now


def _num_scored(labels_BT: Tensor) -> Tensor:
    return (labels_BT[:, 1:] != NOT_SCORED).sum()


def _what_stays(checkpoints: Checkpoints) -> str:
    found = checkpoints.complete()
    return f"The checkpoint of step {found[-1].step} is whole." if found else "There is no checkpoint yet."


def _not_written(step: int, error: Exception) -> str:
    reason = " ".join(str(error).split()) or type(error).__name__
    return f"the checkpoint of step {step} must be written whole, got: {reason}. Free space and resume."
