"""A forward that computes what decides the score and nothing else, through the model's own layers.

Shapes: B documents, T tokens, N hidden size, H query heads, G key heads, D dimensions per head.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

CACHE_NAMES = ("past_key_values", "layer_past")
"""What layers call the cache that they give keys and values to."""
LENGTHWISE = ("position_embeddings", "position_ids", "cache_position")
"""Arguments of a layer that have an entry per token; all others must be the same for all tokens."""

NUM_PROBE_TOKENS = 64
"""Tokens on which a trimmed forward is compared with a plain one."""
TOLERANCES = {torch.float32: 1e-3}
HALF_TOLERANCE = 0.05
"""How far its logits may lie from the plain one's, as a share of their norm: rounding adds up over the layers, to 1e-5
in float32 and 1e-2 in bfloat16. A wrong mask or position gives 1."""


class NotTrimmableError(ValueError):
    """The layers of a model do not read a document as a trimmed forward needs it."""


@dataclass(frozen=True, kw_only=True)
class Trim:
    """How much of a forward is computed, and in what steps."""

    num_kept: int
    """Positions at the end whose logits are wanted."""
    piece_length: int
    """Tokens of each document that go through a layer at once; fewer hold less in memory."""


PROBED = Trim(num_kept=5, piece_length=24)


@contextmanager
def trimmed_forward(model: PreTrainedModel, trim: Trim, *, attention: str) -> Iterator[None]:
    """Make the model's forward return the logits of the last positions alone, at their price.

    Each layer reads the document piece by piece and writes its output over its input; keys and values of one layer
    are kept, and only while it works. In the last layer every token gives keys and values, but attention, its output
    and the MLP are computed for the last positions alone, which are then all that the final norm and the head see.
    The layers' own code computes all of it, so any architecture whose layers hand keys and values to a cache and
    queries to transformers' attention interface is served. With gradients enabled, pieces are whole documents.

    Inside, `model(input_ids=..., use_cache=False)` is the only call that may be made, without padding.

    Args:
        model: A causal LM.
        trim: What is computed.
        attention: Name of an attention implementation that takes queries of the last positions of the keys.

    Yields:
        None; the model is as it was afterwards.

    Raises:
        NotTrimmableError: The model's layers are not like that; raised by its forward too.
    """
    layers = decoder_layers(model)
    config = model.config.get_text_config()
    with ExitStack() as undo:
        undo.callback(setattr, config, "_attn_implementation", config._attn_implementation)
        config._attn_implementation = attention
        for number, layer in enumerate(layers):
            undo.callback(set_forward, layer, layer.__dict__.get("forward"))
            set_forward(layer, _Reader(layer, trim, is_last=number == len(layers) - 1).read)
        yield


@torch.inference_mode()
def trimming_refusal(model: PreTrainedModel, *, attention: str, device: torch.device) -> str:
    """Return why a model's forward cannot be trimmed; nothing where it was proved that it can.

    A few random tokens are read both ways. What shows beyond a few dozen tokens only, a sliding window say, is for
    the model's class to have: attention that flash-attn could compute, without parts that look ahead.

    Args:
        model: A causal LM, in evaluation mode.
        attention: As `trimmed_forward`.
        device: Where its inputs go.
    """
    config = model.config.get_text_config()
    if not model._supports_flash_attn or getattr(config, "attention_chunk_size", None):
        return f"{type(model).__name__} has attention that no flash kernel computes"
    generator = torch.Generator().manual_seed(0)
    input_ids_BT = torch.randint(config.vocab_size, (2, NUM_PROBE_TOKENS), generator=generator).to(device)
    plain_BTV = model(input_ids=input_ids_BT, use_cache=False).logits[:, -PROBED.num_kept :].float()
    try:
        with trimmed_forward(model, PROBED, attention=attention):
            trimmed_BTV = model(input_ids=input_ids_BT, use_cache=False).logits.float()
    except (NotTrimmableError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        return f"{type(model).__name__}: {error}"
    if trimmed_BTV.shape != plain_BTV.shape:
        return f"{type(model).__name__}: logits of shape {tuple(trimmed_BTV.shape)}, not {tuple(plain_BTV.shape)}"
    error_share = ((trimmed_BTV - plain_BTV).norm() / plain_BTV.norm()).item()
    if not error_share <= TOLERANCES.get(model.dtype, HALF_TOLERANCE):
        return f"{type(model).__name__}: logits differ by {error_share:.2g} of their norm"
    return ""


def decoder_layers(model: PreTrainedModel) -> list[nn.Module]:
    """Return the layers that a model's forward goes through, in order.

    Args:
        model: A causal LM.

    Raises:
        NotTrimmableError: They cannot be told.
    """
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    num_layers = model.config.get_text_config().num_hidden_layers
    for module in decoder.modules():
        if isinstance(module, nn.ModuleList) and len(module) == num_layers:
            return list(module)
    raise NotTrimmableError(f"{type(model).__name__} has no list of {num_layers} layers")


def set_forward(module: nn.Module, forward: Callable[..., object] | None) -> None:
    """Give a module a forward of its own.

    Args:
        module: Any module.
        forward: What it computes from now on; None for the forward of its class.
    """
    if forward is None:
        del module.forward
    else:
        module.forward = forward


class _Reader:
    """One layer's forward, in pieces."""

    def __init__(self, layer: nn.Module, trim: Trim, *, is_last: bool) -> None:
        self._forward = layer.forward
        self._cache_name = _cache_name(layer)
        self._trim = trim
        self._is_last = is_last

    def read(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return the layer's output: (B, T, N), or (B, num_kept, N) from the last layer."""
        num_tokens = hidden_states.shape[1]
        start = max(0, num_tokens - self._trim.num_kept) if self._is_last else 0
        length = num_tokens if torch.is_grad_enabled() else self._trim.piece_length
        if args:
            raise NotTrimmableError(f"a layer is called with {len(args) + 1} arguments without names")
        if start == 0 and length >= num_tokens:
            return self._forward(hidden_states, **kwargs)  # type: ignore[no-any-return]
        cache = _LayerCache(num_tokens)
        call = partial(self._call, hidden_states, kwargs | {self._cache_name: cache})
        for piece in _pieces(0, start, length):
            with cache.taking_keys_alone():
                call(piece)
        out_BTN: Tensor | None = None
        for piece in _pieces(start, num_tokens, length):
            piece_BTN = call(piece)
            if piece == slice(start, num_tokens):
                return piece_BTN
            if out_BTN is None:  # its input, unless the layer lies on another device than the one before
                out_BTN = hidden_states[:, start:].to(piece_BTN.device)
            out_BTN[:, piece.start - start : piece.stop - start] = piece_BTN
        assert out_BTN is not None
        return out_BTN

    def _call(self, hidden_states: Tensor, kwargs: Mapping[str, object], piece: slice) -> Tensor:
        own = {name: _piece_of(value, name, piece) for name, value in kwargs.items()}
        piece_BTN = self._forward(hidden_states[:, piece], **own)
        if not isinstance(piece_BTN, Tensor):
            raise NotTrimmableError(f"a layer returns {type(piece_BTN).__name__}, not its hidden states")
        return piece_BTN


class _KeysTakenError(Exception):
    """Ends a layer's forward that was called for its keys and values alone; nobody else ever sees it."""


class _LayerCache:
    """The keys and values of one layer for the tokens read so far; what the layer takes for its cache."""

    def __init__(self, num_tokens: int) -> None:
        self._num_tokens = num_tokens
        self._num_read = 0
        self._kept: list[Tensor] = []
        self._keys_alone = False

    def update(self, key_BGTD: Tensor, value_BGTD: Tensor, *_: object, **__: object) -> tuple[Tensor, Tensor]:
        """Take a piece's keys and values; return all so far, shapes (B, G, tokens so far, D)."""
        begin, self._num_read = self._num_read, self._num_read + key_BGTD.shape[2]
        new = (key_BGTD, value_BGTD)
        if torch.is_grad_enabled():
            self._kept = [torch.cat(pair, dim=2) for pair in zip(self._kept, new, strict=True)] if begin else [*new]
        else:
            self._kept = self._kept or [_room(part, self._num_tokens) for part in new]
            for room, part in zip(self._kept, new, strict=True):
                room[:, :, begin : self._num_read] = part
        if self._keys_alone:
            raise _KeysTakenError
        key, value = (room[:, :, : self._num_read] for room in self._kept)
        return key, value

    def get_seq_length(self, *_: object) -> int:
        """Return how many tokens are read."""
        return self._num_read

    @contextmanager
    def taking_keys_alone(self) -> Iterator[None]:
        """End the layer's forward inside as soon as it has given keys and values."""
        self._keys_alone = True
        try:
            yield
            raise NotTrimmableError("a layer gives no keys and values to its cache")
        except _KeysTakenError:
            pass
        finally:
            self._keys_alone = False


def _pieces(start: int, end: int, length: int) -> Iterator[slice]:
    for begin in range(start, end, length):
        yield slice(begin, min(begin + length, end))


def _piece_of(value: object, name: str, piece: slice) -> object:
    """Return the part of an argument that belongs to a piece."""
    if isinstance(value, Tensor) and name in LENGTHWISE:
        # the positions are the last dimension but for cos and sin, which have one more
        return value[..., piece]
    if isinstance(value, tuple) and name in LENGTHWISE:
        return tuple(part[..., piece, :] for part in value)
    if isinstance(value, Tensor):
        raise NotTrimmableError(f"a layer is called with a tensor {name}")
    return value


def _room(part: Tensor, num_tokens: int) -> Tensor:
    """Return room for all tokens' keys or values, in memory as kernels like it: the heads of a token side by side."""
    num_documents, num_heads, _, head_dim = part.shape
    return part.new_empty(num_documents, num_tokens, num_heads, head_dim).transpose(1, 2)


def _cache_name(layer: nn.Module) -> str:
    names = inspect.signature(layer.forward).parameters
    for name in CACHE_NAMES:
        if name in names:
            return name
    raise NotTrimmableError(f"{type(layer).__name__} takes no cache")
