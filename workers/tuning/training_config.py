"""Settings of a training run; needs no torch, so that a command line can name them."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

TrainingPrecision = Literal["auto", "float32", "bfloat16"]

NO_PART_OF_THE_RUN = (
    "checkpoint_steps",
    "num_checkpoints",
    "log_steps",
    "report_to",
    "activation_checkpointing",
    "shard",
)
"""Settings that may differ when a run is taken up: none of them moves the loss by more than rounding."""


@dataclass(frozen=True, kw_only=True)
class LoraConfig:
    """Low-rank adapters in place of full fine-tuning; they are merged into the weights at the end.

    Source: LoRA, arXiv:2106.09685.
    """

    r: int = 16
    """Rank of each adapter."""
    alpha: int = 32
    """An adapter's output is multiplied by alpha / r."""
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj")
    """Ends of the names of the modules that get one; "all-linear" alone for every linear module but the head."""
    dropout: float = 0.0
    """Of an adapter's input."""
    also_trained: tuple[str, ...] = ()
    """Ends of the names of modules that are trained in full beside the adapters: norms, the embedding."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.r < 1:
            raise ValueError(f"lora.r must be at least 1, got {self.r}. Correct it.")
        if not self.alpha > 0:
            raise ValueError(f"lora.alpha must be above 0, got {self.alpha}. Correct it.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout must be at least 0 and below 1, got {self.dropout}. Correct it.")
        if not self.targets:
            raise ValueError("lora.targets must name at least one module, got none. Drop lora for full fine-tuning.")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How a model is trained on a stream of packs.

    Raises:
        ValueError: A number is out of range.

    Source: LongRoPE2, arXiv:2502.20082, section 4.1, for the defaults of the optimizer.
    """

    num_steps: int
    """Optimizer steps."""
    micro_batches_per_step: int = 8
    """Micro-batches of a step, over all processes; the gradient is that of the mean loss over all of their tokens."""
    learning_rate: float = 2e-5
    """At the end of the warm-up; it falls as a cosine to 0 at the last step."""
    warmup: float = 0.0
    """Steps of linear warm-up where at least 1, else their share of all steps."""
    betas: tuple[float, float] = (0.9, 0.95)
    """AdamW's decay of the gradient's mean and of that of its square."""
    weight_decay: float = 0.0
    """AdamW's."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    precision: TrainingPrecision = "auto"
    """Of the forward and backward pass; weights and optimizer are float32. auto: bfloat16 on CUDA, float32 on a CPU."""
    activation_checkpointing: bool = False
    """Whether a layer's activations are computed once more in the backward pass instead of being kept."""
    lora: LoraConfig | None = None
    """Adapters; None for full fine-tuning."""
    seed: int = 0
    """Of dropout and adapters, not of the packs."""
    checkpoint_steps: int = 100
    """A checkpoint is written every so many steps, and after the last."""
    num_checkpoints: int = 2
    """Complete checkpoints that are kept."""
    log_steps: int = 1
    """The terminal and `report_to` get a line every so many steps; the training log has all."""
    report_to: tuple[str, ...] = ()
    """Where the Trainer reports beside the terminal: wandb, mlflow, ...; TensorBoard too where it is installed."""
    shard: bool = False
    """Whether several processes share weights, gradients and optimizer (FSDP2) instead of a copy each."""
    context_parallel: int = 1
    """Processes that share one pack by ring attention (accelerate's cp_size); long packs with full attention only."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("num_steps", "micro_batches_per_step", "checkpoint_steps", "num_checkpoints", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"training.{name} must be at least 1, got {getattr(self, name)}. Correct it.")
        for name in ("warmup", "weight_decay", "max_grad_norm"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"training.{name} must be at least 0, got {getattr(self, name)}. Correct it.")
        if not self.learning_rate > 0:
            raise ValueError(f"training.learning_rate must be above 0, got {self.learning_rate}. Correct it.")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"training.betas must be at least 0 and below 1, got {self.betas}. Correct them.")
        if self.warmup_steps > self.num_steps:
            raise ValueError(
                f"training.warmup must be at most {self.num_steps} steps, all there are, got {self.warmup:g}. Lower it."
            )
        if self.context_parallel < 1:
            raise ValueError(f"training.context_parallel must be at least 1, got {self.context_parallel}. Correct it.")

    @property
    def warmup_steps(self) -> int:
        """Steps of warm-up."""
        return int(self.warmup) if self.warmup >= 1 else round(self.warmup * self.num_steps)

    def identity(self) -> Mapping[str, object]:
        """Return what must not differ when a run is taken up, as JSON has it."""
        named = {name: value for name, value in asdict(self).items() if name not in NO_PART_OF_THE_RUN}
        return {f"training.{name}": list(value) if isinstance(value, tuple) else value for name, value in named.items()}
