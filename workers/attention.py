"""Which attention kernel a model runs with, chosen once when it is loaded."""

import torch
from transformers import PreTrainedModel
from transformers.utils.import_utils import is_flash_attn_2_available


def attention_implementation(model_class: type[PreTrainedModel], device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the fastest exact attention that the model, the device and the installed packages allow.

    Eager attention holds length^2 scores per head in memory; only models that need it (attention softcapping, sinks)
    get it.

    Args:
        model_class: Class of the model, which knows the kernels that it supports.
        device: Where the model runs.
        dtype: Precision of its activations.

    Returns:
        "flash_attention_2" on CUDA in half precision where the package flash-attn is installed, else "sdpa" where the
        model supports it, else "eager".
    """
    half = dtype in (torch.bfloat16, torch.float16)
    if device.type == "cuda" and half and is_flash_attn_2_available() and model_class._supports_flash_attn:
        return "flash_attention_2"
    return "sdpa" if model_class._supports_sdpa else "eager"
