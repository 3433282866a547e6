"""How much memory a forward needs beside the weights, told before it starts, and how long its pieces may be."""

import re
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel

from needles.document import NeedleDocument
from workers.attention import attention_shape
from workers.model import LoadedModel
from workers.trimmed import NotTrimmableError, decoder_layers

PIECE_BYTES = {"cuda": 3 * 2**30, "cpu": 2**25}
"""Memory for the activations of one piece in one layer, by kind of device: on a GPU enough tokens that its matrix
products run at full speed (16,384 of an 8B model), on a CPU about what its cache holds."""
MIN_PIECE = 256
"""Tokens of the shortest piece."""
NUM_NORM_COPIES = 4
"""Hidden states in float32 that a norm holds at once."""
NUM_ANGLE_COPIES = 3
"""Angles in float32 that a rotary module holds at once, beside cos and sin in the model's precision."""
MEMORY_INFO = Path("/proc/meminfo")
CGROUP = Path("/sys/fs/cgroup")
GIGABYTE = 1e9


def piece_length(model: PreTrainedModel, num_documents: int) -> int:
    """Return how many tokens of each document go through a layer at once, a power of two.

    Args:
        model: The model.
        num_documents: Documents in the forward.

    Raises:
        NotTrimmableError: The model's layers cannot be told.
    """
    budget = PIECE_BYTES.get(_device(model).type, PIECE_BYTES["cpu"])
    most = budget // (num_documents * activation_bytes(model))
    return max(MIN_PIECE, 2 ** (most.bit_length() - 1) if most else 0)


def forward_bytes(
    model: PreTrainedModel, num_tokens: int, *, num_kept: int, is_trimmed: bool, num_documents: int = 1
) -> int:
    """Return the memory that a forward needs beside the weights, about; logits and losses included.

    Args:
        model: The model.
        num_tokens: Length of each document.
        num_kept: Positions at the end whose logits are wanted.
        is_trimmed: Whether it is a trimmed forward; a plain one holds all activations of a layer at once.
        num_documents: Documents in the forward.

    Returns:
        Bytes; attention kernels are taken to need none of their own.

    Raises:
        NotTrimmableError: The model's layers cannot be told.
    """
    config = model.config.get_text_config()
    shape = attention_shape(config)
    itemsize = model.dtype.itemsize
    hidden = config.hidden_size * itemsize
    angles = shape.head_dim * (2 * itemsize + NUM_ANGLE_COPIES * 4)
    keys_and_values = 2 * shape.num_key_heads * shape.head_dim * itemsize
    in_layer = min(num_tokens, piece_length(model, num_documents)) if is_trimmed else num_tokens
    logits = num_kept * config.vocab_size * (itemsize + 3 * 4)
    per_token = hidden + keys_and_values if is_trimmed else 2 * hidden
    needed: int = num_documents * (num_tokens * per_token + in_layer * activation_bytes(model) + logits)
    return needed + num_tokens * angles


def activation_bytes(model: PreTrainedModel) -> int:
    """Return what one token's activations take in one layer, at worst: the outputs of all its matrices at once.

    Args:
        model: The model.

    Raises:
        NotTrimmableError: Its layers cannot be told.
    """
    config = model.config.get_text_config()
    num_chosen = getattr(config, "num_experts_per_tok", None) or 1
    widths = 0
    for weight in (weight for weight in decoder_layers(model)[0].parameters() if weight.dim() > 1):
        widths += weight.shape[-2] * (num_chosen if weight.dim() > 2 else 1)
    return int(widths * model.dtype.itemsize + NUM_NORM_COPIES * 4 * config.hidden_size)


def check_memory(loaded: LoadedModel, longest: NeedleDocument) -> None:
    """Refuse documents that cannot fit, before anything is measured.

    Nothing is checked where the model is spread over several devices, or its layers or the memory are not known.

    Args:
        loaded: The model.
        longest: The longest document.

    Raises:
        ValueError: Its forward needs more memory than there is.
    """
    available = available_bytes(loaded.device)
    is_spread = len({parameter.device for parameter in loaded.model.parameters()}) > 1
    if available is None or is_spread or not has_layers(loaded.model):
        return

    def needed(num_tokens: int) -> int:
        num_kept = longest.length - longest.answer_start + 1
        return forward_bytes(loaded.model, num_tokens, num_kept=num_kept, is_trimmed=loaded.is_trimmed)

    if needed(longest.length) <= available:
        return
    fitting = _longest(needed, longest.length, available)
    fits = f"Up to about {fitting} tokens fit" if fitting else "Not even 1024 tokens fit"
    raise ValueError(
        f"a document of {longest.length} tokens must fit the memory beside the weights, got {available / GIGABYTE:.3g} "
        f"GB free on {loaded.device} where about {needed(longest.length) / GIGABYTE:.3g} GB are needed. {fits}; lower "
        "--target-length, free memory, or spread the model with --gpus-per-worker."
    )


def has_layers(model: PreTrainedModel) -> bool:
    """Return whether the layers of a model can be told, so that its memory can be.

    Args:
        model: A causal LM.
    """
    try:
        return bool(decoder_layers(model))
    except NotTrimmableError:
        return False


def available_bytes(device: torch.device) -> int | None:
    """Return the memory that this process may still take on a device.

    Args:
        device: A CUDA device or the CPU.

    Returns:
        Bytes; None where the system does not say it.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return host_bytes(MEMORY_INFO, CGROUP)


def host_bytes(memory_info: Path, cgroup: Path) -> int | None:
    """Return the main memory that is free or can be freed, within the container's limit.

    Args:
        memory_info: /proc/meminfo, or a file like it.
        cgroup: Folder of the process's control group, version 2, as a container sees its own.

    Returns:
        Bytes; None where there is no such file.
    """
    try:
        lines = memory_info.read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    try:
        limit, used = (int((cgroup / name).read_text(encoding="ascii")) for name in ("memory.max", "memory.current"))
        # Pages of files that were read once, weights among them, count as used; the system drops them when it must
        pages = re.findall(r"^inactive_file (\d+)$", (cgroup / "memory.stat").read_text(encoding="ascii"), re.MULTILINE)
        found.append(limit - used + sum(map(int, pages)))
    except (OSError, ValueError):  # no such group, or "max": no limit
        pass
    return min(found) if found else None


def _longest(needed: Callable[[int], int], too_long: int, available: int) -> int:
    """Return the longest document that fits, in whole multiples of 1,024 tokens."""
    low, high = 0, too_long // 1024
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if needed(1024 * middle) <= available else (low, middle)
    return 1024 * low


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device
