"""Which attention a model runs with: chosen once when it is loaded, by what agrees and what is fastest there.

Shapes: B documents, Q queries, K keys, H query heads, G key heads, D dimensions per head.
"""

import logging
from collections.abc import Callable, Mapping
from functools import partial
from time import perf_counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import flash_attention_mask
from transformers.utils.import_utils import is_flash_attn_2_available

from workers.attention_kernels import Attend, AttentionTerms, plain
from workers.speed import synchronize

PREFIX = "ropewalk "
"""What the names of our kernels begin with among transformers' attention implementations."""
WINDOW = 24
"""Sliding window on which a kernel must agree before it is used, beside none."""
NUM_PROBE_KEYS, NUM_PROBE_QUERIES = 256, 160
LEAST_GAIN = 1.1
"""How much faster a kernel must be to be preferred to one that stands before it."""
NUM_TIMED_KEYS, NUM_TIMED_QUERIES = 16384, 4096

logger = logging.getLogger(__name__)


class AttentionShape(NamedTuple):
    """The heads of a model's attention."""

    num_heads: int
    """Query heads."""
    num_key_heads: int
    """Key and value heads."""
    head_dim: int
    """Dimensions per head."""
    softcap: float | None = None
    """Cap of the scores."""


def attention_implementation(model_class: type[PreTrainedModel], device: torch.device, dtype: torch.dtype) -> str:
    """Return the name of the fastest exact attention of transformers, for forwards that are not trimmed.

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


def attention_shape(config: PreTrainedConfig) -> AttentionShape:
    """Return the heads that a configuration speaks of.

    Args:
        config: The model's; of a multimodal model its text part is read.
    """
    text = config.get_text_config()
    num_heads: int = text.num_attention_heads
    return AttentionShape(
        num_heads,
        getattr(text, "num_key_value_heads", None) or num_heads,
        # Latent attention calls those of its dimensions that rotate its head_dim
        getattr(text, "qk_head_dim", None) or getattr(text, "head_dim", None) or text.hidden_size // num_heads,
        getattr(text, "attn_logit_softcapping", None),
    )


@torch.inference_mode()  # as in scoring: with gradients some kernels hand over to others
def choose_kernel(
    found: Mapping[str, Attend], shape: AttentionShape, *, device: torch.device, dtype: torch.dtype
) -> str:
    """Return the name of the fastest kernel that agrees with attention's definition; the log says what became of each.

    Args:
        found: Kernels that may work here, see `kernels`; the last one is taken to.
        shape: The model's heads.
        device: Where it runs.
        dtype: Precision of its activations.

    Returns:
        A key of `found`.
    """
    able: dict[str, Attend] = {}
    last = list(found)[-1]
    for name, attend in found.items():
        refusal = "" if name == last else _refusal(attend, shape, device, dtype)
        if refusal:
            logger.warning("attention by %s is not used: %s", name, refusal)
        else:
            able[name] = attend
    if len(able) == 1:
        return next(iter(able))
    seconds = {name: _seconds(attend, shape, device, dtype) for name, attend in able.items()}
    logger.info(
        "attention of %d queries to %d keys: %s",
        *(NUM_TIMED_QUERIES, NUM_TIMED_KEYS),
        ", ".join(f"{name} {1e3 * time:.2f} ms" for name, time in seconds.items()),
    )
    # The first of about equals, so that another worker and another day come to the same choice
    return next(name for name, time in seconds.items() if time <= LEAST_GAIN * min(seconds.values()))


def register(found: Mapping[str, Attend]) -> None:
    """Make kernels known to transformers, as implementations named `PREFIX` and their names.

    Args:
        found: Kernels by name.
    """
    for name, attend in found.items():
        make_known(PREFIX + name, partial(_forward, attend))


def make_known(name: str, forward: Callable[..., tuple[Tensor, None]]) -> None:
    """Make an attention implementation known to transformers, which then makes no mask of length^2 for it.

    Args:
        name: By which a model's configuration asks for it.
        forward: Called by the model's layers.
    """
    AttentionInterface.register(name, forward)
    AttentionMaskInterface.register(name, flash_attention_mask)


def is_plain(module: nn.Module, attention_mask: Tensor | None, dropout: float, is_causal: bool | None) -> bool:
    """Return whether a layer asks for causal attention without padding and dropout, which is all that our kernels do.

    Args:
        module: The layer's attention.
        attention_mask, dropout, is_causal: As transformers hands them to an implementation.
    """
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    return attention_mask is None and not dropout and bool(causal)


def _forward(
    attend: Attend,
    module: nn.Module,
    query_BHQD: Tensor,
    key_BGKD: Tensor,
    value_BGKD: Tensor,
    attention_mask: Tensor | None,
    *,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    is_causal: bool | None = None,
    **_: object,
) -> tuple[Tensor, None]:
    """Attend as transformers asks for it; what it hands to flash attention is all that is needed."""
    if not is_plain(module, attention_mask, dropout, is_causal):
        raise ValueError("attention must be causal, without padding and dropout, got otherwise. Use another kernel.")
    scale = query_BHQD.shape[-1] ** -0.5 if scaling is None else scaling
    terms = AttentionTerms(scale, sliding_window, softcap, s_aux)
    return attend(query_BHQD, key_BGKD, value_BGKD, terms), None


def _refusal(attend: Attend, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> str:
    """Return why a kernel cannot be used; nothing where it agrees with the definition on all probes."""
    for terms in (_terms(shape, None), _terms(shape, WINDOW)):
        for num_queries in (NUM_PROBE_KEYS, NUM_PROBE_QUERIES):
            query, key, value = _random(shape, num_queries, NUM_PROBE_KEYS, device, dtype, num_documents=2)
            expected = plain(query.float(), key.float(), value.float(), terms)
            try:
                found = attend(query, key, value, terms)
            except Exception as error:  # noqa: BLE001 - packages raise what they like, and there is another kernel
                return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
            difference = (found.float() - expected).abs().max().item() if found.shape == expected.shape else torch.inf
            # Outputs are means of standard normal values, below 5 here, rounded a few times
            if not difference <= 16 * torch.finfo(dtype).eps:
                return f"its output differs by {difference:.2g}"
    return ""


def _seconds(attend: Attend, shape: AttentionShape, device: torch.device, dtype: torch.dtype) -> float:
    """Return the time of a large piece, best of three."""
    query, key, value = _random(shape, NUM_TIMED_QUERIES, NUM_TIMED_KEYS, device, dtype)
    times = []
    for _ in range(4):
        synchronize(device)
        start = perf_counter()
        attend(query, key, value, _terms(shape, None))
        synchronize(device)
        times.append(perf_counter() - start)
    return min(times[1:])


def _terms(shape: AttentionShape, window: int | None) -> AttentionTerms:
    return AttentionTerms(shape.head_dim**-0.5, window, shape.softcap)


def _random(
    shape: AttentionShape,
    num_queries: int,
    num_keys: int,
    device: torch.device,
    dtype: torch.dtype,
    num_documents: int = 1,
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator(device).manual_seed(0)
    make = partial(torch.randn, generator=generator, device=device, dtype=dtype)
    # In memory as projections give them: all heads of a position side by side
    query = make(num_documents, num_queries, shape.num_heads, shape.head_dim)
    key, value = (make(num_documents, num_keys, shape.num_key_heads, shape.head_dim) for _ in range(2))
    return query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2)
