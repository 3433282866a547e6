"""Whether packed attention is what a model's documents would get alone: asked of a kernel, then of a whole model.

Shapes: S tokens of all packs; H query heads, G key heads, D dimensions per head; V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

from workers.attention import PREFIX, WINDOW, AttentionShape
from workers.attention_kernels import AttentionTerms, plain
from workers.trimmed import HALF_TOLERANCE, TOLERANCES
from workers.tuning.attention_kernels import Documents, PackedAttend
from workers.tuning.packs import Pack, pack

HALF = (torch.bfloat16, torch.float16)
ENDS = (0, 70, 71, 200, 300)
"""Documents on which kernels are compared: longer and shorter than a window, and of one token."""
FAR = 2**20
"""Tokens beyond which nobody's window reaches."""
NO_WINDOW = 0
"""Stands for attention to all tokens before."""

Attention: TypeAlias = Callable[..., tuple[Tensor, Tensor | None]]
"""What transformers calls for attention."""
MaskFunction: TypeAlias = Callable[[int, int, Tensor, Tensor], Tensor]
"""transformers' rule of who sees whom, by document, head, query and key."""


def kernel_refusal(
    attend: PackedAttend, shape: AttentionShape, *, has_sinks: bool, device: torch.device, dtype: torch.dtype
) -> str:
    """Return why a kernel cannot be used; nothing where output and gradients agree with the definition.

    Args:
        attend: The kernel.
        shape: The model's heads.
        has_sinks: Whether its scores have sinks.
        device, dtype: Where it runs, and in what precision.
    """
    where = Documents(torch.tensor(ENDS, dtype=torch.int32, device=device), 129)
    sinks_H = torch.linspace(-1, 1, shape.num_heads, device=device) if has_sinks else None
    generator = torch.Generator(device).manual_seed(0)
    for window in (None, WINDOW):
        terms = AttentionTerms(shape.head_dim**-0.5, window, shape.softcap, sinks_H)
        heads = (shape.num_heads, shape.num_key_heads, shape.num_key_heads, shape.num_heads)
        *inputs, weight_SHD = (
            torch.randn(ENDS[-1], number, shape.head_dim, generator=generator, device=device, dtype=dtype)
            for number in heads
        )
        expected = _with_gradients(definition, [part.float() for part in inputs], weight_SHD.float(), terms, where)
        try:
            found = _with_gradients(attend, inputs, weight_SHD, terms, where)
        except Exception as error:  # noqa: BLE001 - packages raise what they like, and there is another kernel
            return f"{type(error).__name__}: {_line(error)}"
        for name, one, other in zip(("output", *(f"gradient by {n}" for n in "qkv")), found, expected, strict=True):
            share = ((one.float() - other).norm() / other.norm()).item()
            # A few roundings for each of up to 129 terms of a sum, in all directions
            if not share <= 16 * torch.finfo(dtype).eps:
                return f"its {name} differs by {share:.2g} of its norm"
    return ""


def definition(
    query_SHD: Tensor, key_SGD: Tensor, value_SGD: Tensor, terms: AttentionTerms, where: Documents
) -> Tensor:
    """Return attention by its definition, document by document; what every kernel is compared with.

    Args:
        query_SHD, key_SGD, value_SGD: Queries, keys and values.
        terms: The layer's.
        where: The documents.

    Returns:
        Attention output, shape (S, H, D).
    """
    query, key, value = (part.transpose(0, 1)[None] for part in (query_SHD, key_SGD, value_SGD))
    bounds = (slice(*pair) for pair in pairwise(where.ends.tolist()))
    return torch.cat([plain(query[:, :, one], key[:, :, one], value[:, :, one], terms)[0] for one in bounds])


def probe_packs(vocab_size: int, lengths: Sequence[Sequence[int]]) -> list[Pack]:
    """Return packs of random tokens.

    Args:
        vocab_size: Token ids lie below it.
        lengths: Tokens of each pack's documents; packs of one length.
    """
    generator = np.random.default_rng(0)
    return [
        pack([generator.integers(vocab_size, size=length) for length in one], window="short", attend_across=False)
        for one in lengths
    ]


def model_refusal(model: PreTrainedModel, inputs: Mapping[str, Any], plain_implementation: str) -> str:
    """Return why a model cannot read packs; nothing where the logits are those of each document alone.

    Args:
        model: A causal LM with packed attention.
        inputs: What it is called with for packs of documents.
        plain_implementation: An attention of transformers that it can have otherwise.
    """
    starts = inputs["cu_seq_lens_q"].tolist()
    own = model.config._attn_implementation
    try:
        packed_SV = model(**{name: value for name, value in inputs.items() if name != "labels"}).logits.flatten(0, 1)
        model.set_attn_implementation(plain_implementation)
        documents = [inputs["input_ids"].flatten()[None, start:end] for start, end in pairwise(starts)]
        alone_SV = torch.cat([model(input_ids=ids, use_cache=False).logits[0] for ids in documents])
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return _line(error)
    finally:
        model.set_attn_implementation(own)
    share = ((packed_SV.float() - alone_SV.float()).norm() / alone_SV.float().norm()).item()
    if not share <= (HALF_TOLERANCE if packed_SV.dtype in HALF else TOLERANCES[torch.float32]):
        return f"the logits of documents in a pack differ from those of each alone by {share:.2g} of their norm"
    return ""


def window_refusal(model: PreTrainedModel, attention: Attention, inputs: Mapping[str, Any]) -> str:
    """Return why attention does not learn all that a model's masks would say; nothing where it does.

    Few tokens do not show a sliding window. So the masks' rule is asked about far tokens, and the window that comes
    out travels to each layer in place of its mask, where it must be the one that the layer names.

    Args:
        model: A causal LM.
        attention: Packed attention.
        inputs: What it is called with for one document.
    """
    windows: set[tuple[int, int]] = set()

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **options: Any
    ) -> tuple[Tensor, Tensor | None]:
        window = options.get("sliding_window") or NO_WINDOW
        windows.add((window if mask is None else int(mask), window))
        return attention(module, query, key, value, None, **options)

    def ask(*_: object, mask_function: MaskFunction, **__: object) -> Tensor:
        return torch.full((1, 1, 1, 1), _window(mask_function))

    name = f"{PREFIX}packed probe"
    AttentionInterface.register(name, attend)
    AttentionMaskInterface.register(name, ask)
    own = model.config._attn_implementation
    model.set_attn_implementation(name)
    try:
        model(**{key: value for key, value in inputs.items() if key != "labels"})
    except (AttributeError, TypeError, ValueError, RuntimeError) as error:
        return _line(error)
    finally:
        model.set_attn_implementation(own)
    if not windows:
        return "its attention does not go through transformers' attention interface"
    for masked, named in sorted(windows):
        if masked != named:
            return f"a layer's mask has {_words(masked)}, the layer names {_words(named)}"
    return ""


def _window(mask_function: MaskFunction) -> int:
    """Return how many tokens a token far from the start sees."""
    query = torch.tensor(FAR)
    low, high = 0, FAR
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if mask_function(0, 0, query, torch.tensor(middle)) else (middle + 1, high)
    return FAR - low + 1 if low else NO_WINDOW


def _words(window: int) -> str:
    return "no window" if window == NO_WINDOW else f"a window of {window} tokens"


def _line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")


def _with_gradients(
    attend: PackedAttend, inputs: Sequence[Tensor], weight_SHD: Tensor, terms: AttentionTerms, where: Documents
) -> tuple[Tensor, ...]:
    leaves = [part.detach().requires_grad_() for part in inputs]
    query_SHD, key_SGD, value_SGD = leaves
    with torch.enable_grad():
        out_SHD = attend(query_SHD, key_SGD, value_SGD, terms, where)
        return out_SHD.detach(), *torch.autograd.grad((out_SHD * weight_SHD).sum(), leaves)
