"""Low-rank adapters, by peft. Needs the extra `finetune`."""

from importlib.util import find_spec
from typing import TYPE_CHECKING

import torch
from torch import nn
from transformers import PreTrainedModel

from workers.tuning.training_config import LoraConfig

if TYPE_CHECKING:
    from peft import PeftModel


def check_lora_available() -> None:
    """Check that adapters can be made here.

    Raises:
        ValueError: peft is not installed.
    """
    if find_spec("peft") is None:
        raise ValueError("training.lora must find the package peft, got none. Install it, or drop training.lora.")


def with_adapters(model: PreTrainedModel, config: LoraConfig, *, seed: int) -> "PeftModel":
    """Return a model round `model` whose adapters alone are trained; its own modules are exchanged in place.

    Args:
        model: A causal LM.
        config: Rank, scale and places of the adapters.
        seed: Of their first weights.

    Raises:
        ValueError: peft is not installed, or no module is called so.
    """
    check_lora_available()
    import peft

    targets: str | list[str] = list(config.targets)
    settings = peft.LoraConfig(
        task_type="CAUSAL_LM",
        r=config.r,
        lora_alpha=config.alpha,
        lora_dropout=config.dropout,
        target_modules="all-linear" if targets == ["all-linear"] else targets,
        modules_to_save=list(config.also_trained) or None,
    )
    torch.manual_seed(seed)
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"training.lora.targets must name modules of the model, got: {reason}") from error


def merged(model: nn.Module) -> PreTrainedModel:
    """Return the causal LM with its adapters added to its weights; they are gone afterwards.

    Args:
        model: What `with_adapters` returned.
    """
    plain: PreTrainedModel = model.merge_and_unload()  # type: ignore[operator]
    return plain
