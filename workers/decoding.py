"""Decodes rows under one rotation: prefill in chunks, then a token at a time with a cache, greedily or by chance.

Shapes: B rows of a batch, T tokens of a forward, K tokens read so far, V vocabulary, G key heads, D dimensions a head.
"""

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from workers.model import input_device

Ended = Literal["stop", "length", "not finite"]
"""Why a row ended: its last token is a stop token; it has all tokens that were asked for; its logits are no numbers."""


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How tokens are chosen, and how much is read at once.

    Raises:
        ValueError: num_new_tokens, batch_size or chunk_tokens is below 1, temperature is below 0 or not finite, or
            top_p is outside (0, 1].
    """

    num_new_tokens: int
    """Most tokens that a row may be given."""
    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the likeliest token."""
    top_p: float = 1.0
    """Draws from the fewest likeliest tokens whose probabilities sum to so much; without effect at temperature 0."""
    seed: int | Sequence[int] = 0
    """Of the draws. A row's draws depend on its seed and its prompt alone, so one prompt given twice is answered twice
    alike: several samples of it need a seed per row."""
    stop_token_ids: Collection[int] | None = None
    """Tokens that end a row; None for those of the model's generation_config, empty for none."""
    batch_size: int = 8
    """Rows decoded together."""
    chunk_tokens: int = 4096
    """Tokens of all rows together that one forward of the prefill reads; fewer hold less in memory."""

    def __post_init__(self) -> None:
        for name in ("num_new_tokens", "batch_size", "chunk_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}. Correct it.")
        if not 0.0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature must be a finite number of at least 0, got {self.temperature:g}. Use 0 for the likeliest "
                "token."
            )
        if not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p:g}. Use 1 for all tokens.")


class Row:
    """One prompt, and what was generated for it so far."""

    def __init__(self, prompt: Sequence[int], seed: int, device: torch.device) -> None:
        """Start with nothing generated.

        Args:
            prompt: Token ids.
            seed: Of its chance, together with the prompt.
            device: Where its tokens are drawn.
        """
        self.token_ids = list(prompt)
        """The prompt and the tokens after it."""
        self.ended: Ended | None = None
        """Why it ended; None while it goes on."""
        self._num_prompt_tokens = len(prompt)
        digest = hashlib.sha256(f"{seed} {self.token_ids}".encode()).digest()
        self.generator = torch.Generator(device).manual_seed(int.from_bytes(digest[:7], "big"))
        """Its own chance, which no other row can move."""

    @property
    def generated(self) -> list[int]:
        """The tokens after the prompt."""
        return self.token_ids[self._num_prompt_tokens :]

    def num_left(self, decoding: Decoding) -> int:
        """Return how many tokens it may still be given.

        Args:
            decoding: How many it may be given in all.
        """
        return self._num_prompt_tokens + decoding.num_new_tokens - len(self.token_ids)

    def take(self, token: int, decoding: Decoding, stop_token_ids: Collection[int]) -> None:
        """Add a token, and end where it is the last.

        Args:
            token: Its id; a negative one says that there was none to choose, and ends the row too.
            decoding: How many it may be given.
            stop_token_ids: Tokens that end it.
        """
        if token < 0:
            self.ended = "not finite"
            return
        self.token_ids.append(token)
        if token in stop_token_ids:
            self.ended = "stop"
        elif self.num_left(decoding) == 0:
            self.ended = "length"


@torch.no_grad()
def decode(
    model: PreTrainedModel,
    rows: Sequence[Row],
    decoding: Decoding,
    stop_token_ids: Collection[int],
    *,
    most_read: int | None = None,
) -> None:
    """Generate for each row until it ends, or until its next token would need more tokens read than allowed.

    Every row starts with an empty cache. Rows of unlike length share a batch, padded on the left, where all layers
    attend by a mask of places; where one keeps a state or attends in chunks, only rows of one length do.

    Args:
        model: A causal LM in evaluation mode, with the rotation that holds for all of it.
        rows: Rows that have not ended; they take their tokens.
        decoding: How tokens are chosen.
        stop_token_ids: Tokens that end a row.
        most_read: Tokens that may be read of a row at most; None for any number. No row is longer.
    """
    is_padded = _ignores_padding(model)
    for batch in _batches(rows, decoding.batch_size, is_padded=is_padded):
        _decode_batch(model, batch, decoding, stop_token_ids, most_read)


def choose_tokens(logits_BV: Tensor, rows: Sequence[Row], decoding: Decoding) -> Tensor:
    """Return each row's next token, shape (B,); -1 for a row whose logits are no numbers.

    A token is drawn as the winner of a race of exponential clocks, one per token, at the rates of its probabilities:
    that is a draw from the distribution, and one that a rounding of the logits rarely changes.

    Args:
        logits_BV: Logits of the next token, shape (rows, vocabulary).
        rows: The rows, for their chance.
        decoding: Temperature and top_p.
    """
    logits_BV = logits_BV.float()
    most_B, likeliest_B = logits_BV.max(dim=-1)
    tokens_B = likeliest_B
    if decoding.temperature > 0.0:
        # The likeliest at 0, so that the smallest temperature gives no infinity
        scores_BV = (logits_BV - most_B[:, None]) / decoding.temperature
        if decoding.top_p < 1.0:
            scores_BV = scores_BV.masked_fill(~_nucleus(scores_BV.softmax(dim=-1), decoding.top_p), -torch.inf)
        clocks_BV = torch.empty_like(scores_BV)
        for clocks_V, row in zip(clocks_BV, rows, strict=True):
            clocks_V.exponential_(generator=row.generator)
        tokens_B = (scores_BV - clocks_BV.log()).argmax(dim=-1)
    return torch.where(most_B.isfinite(), tokens_B, -1)


def _nucleus(probabilities_BV: Tensor, top_p: float) -> Tensor:
    """Return which tokens are of the fewest likeliest that sum to top_p, shape (B, V)."""
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True, stable=True)
    likelier_BV = sorted_BV.double().cumsum(dim=-1) - sorted_BV
    return torch.zeros_like(order_BV, dtype=torch.bool).scatter(-1, order_BV, likelier_BV < top_p)


def _decode_batch(
    model: PreTrainedModel,
    rows: Sequence[Row],
    decoding: Decoding,
    stop_token_ids: Collection[int],
    most_read: int | None,
) -> None:
    reader = _Reader(model, rows, decoding, most_read)
    logits_BV = reader.prefill(max(1, decoding.chunk_tokens // len(rows)))
    while True:
        tokens_B = choose_tokens(logits_BV, rows, decoding)
        for row, token in zip(rows, tokens_B.tolist(), strict=True):
            row.take(token, decoding, stop_token_ids)
        going = [
            number
            for number, row in enumerate(rows)
            if row.ended is None and (most_read is None or len(row.token_ids) <= most_read)
        ]
        if not going:
            return
        if len(going) < len(rows):
            rows, tokens_B = [rows[number] for number in going], tokens_B[going]
            reader.keep(going)
        logits_BV = reader.read(tokens_B[:, None])


class _Reader:
    """The rows of a batch as the model reads them: padded on the left to one length, with a cache."""

    def __init__(self, model: PreTrainedModel, rows: Sequence[Row], decoding: Decoding, most_read: int | None) -> None:
        self._model = model
        self._device = input_device(model)
        longest = max(len(row.token_ids) for row in rows)
        pads = [longest - len(row.token_ids) for row in rows]
        # Any token will do for padding: nothing attends to it
        ids = [[0] * num_pads + row.token_ids for num_pads, row in zip(pads, rows, strict=True)]
        self._prompts_BT = torch.tensor(ids, device=self._device)
        # The last token is never read
        reads = [len(row.token_ids) + row.num_left(decoding) - 1 for row in rows]
        most = [num_pads + min(num_read, most_read or num_read) for num_pads, num_read in zip(pads, reads, strict=True)]
        self._cache = _cache(model, max(most))
        self._num_read = 0
        self._pads_B1: Tensor | None = None
        if any(pads):
            self._pads_B1 = torch.tensor(pads, device=self._device)[:, None]
            self._mask_BK = (torch.arange(max(most), device=self._device) >= self._pads_B1).long()

    def prefill(self, chunk_length: int) -> Tensor:
        """Read the prompts; return the logits after them, shape (B, V)."""
        *chunks, last_BT = torch.split(self._prompts_BT, chunk_length, dim=1)
        for chunk_BT in chunks:
            self.read(chunk_BT)
        return self.read(last_BT)

    def read(self, input_ids_BT: Tensor) -> Tensor:
        """Read tokens after those read before; return the logits after the last, shape (B, V)."""
        begin, self._num_read = self._num_read, self._num_read + input_ids_BT.shape[1]
        padding: dict[str, Tensor] = {}
        if self._pads_B1 is not None:
            places_T = torch.arange(begin, self._num_read, device=self._device)
            padding["position_ids"] = (places_T - self._pads_B1).clamp(min=0)
            padding["attention_mask"] = self._mask_BK[:, : self._num_read]
        logits_B1V: Tensor = self._model(
            input_ids=input_ids_BT.to(self._device),
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
            **padding,
        ).logits
        return logits_B1V[:, -1].to(self._device)

    def keep(self, numbers: Sequence[int]) -> None:
        """Let go of all rows but these."""
        numbers_B = torch.tensor(numbers, device=self._device)
        for layer in self._cache.layers:
            layer.reorder_cache(numbers_B)  # type: ignore[arg-type]
        if self._pads_B1 is not None:
            self._pads_B1, self._mask_BK = self._pads_B1[numbers_B], self._mask_BK[numbers_B]


class _RoomyLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values of one layer, in room for all that will come; growing by concatenation copies them each time."""

    def __init__(self, num_tokens: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._num_tokens = num_tokens
        self._rooms: tuple[Tensor, Tensor] | None = None

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Take keys and values of new tokens; return all so far, shapes (B, G, K, D)."""
        begin = self.get_seq_length()
        end = begin + key_states.shape[-2]
        if self._rooms is None:
            self.lazy_initialization(key_states, value_states)
            self._rooms = _room(key_states, self._num_tokens), _room(value_states, self._num_tokens)
        for room, states in zip(self._rooms, (key_states, value_states), strict=True):
            room[:, :, begin:end] = states
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)
        return self.keys, self.values

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Keep the rows of these numbers, in this order."""
        assert self._rooms is not None
        end = self.get_seq_length()
        keys, values = self._rooms
        self._rooms = keys[beam_idx.to(keys.device)], values[beam_idx.to(values.device)]
        self.keys, self.values = (room[:, :, :end] for room in self._rooms)


def _room(states: Tensor, num_tokens: int) -> Tensor:
    return states.new_empty(*states.shape[:-2], num_tokens, states.shape[-1])


def _cache(model: PreTrainedModel, num_tokens: int) -> DynamicCache:
    """Return an empty cache of the model's layers; those that keep all tokens have room for so many."""
    cache = DynamicCache(config=model.config)
    cache.layers = [_RoomyLayer(num_tokens) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def _ignores_padding(model: PreTrainedModel) -> bool:
    """Return whether every layer attends by a mask of places; what a state makes of padding is not ours to know."""
    layers = DynamicCache(config=model.config).layers
    is_chunked = getattr(model.config.get_text_config(), "attention_chunk_size", None)
    return not is_chunked and all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in layers)


def _batches(rows: Sequence[Row], batch_size: int, *, is_padded: bool) -> Iterator[Sequence[Row]]:
    """Yield rows of like length together, the longest first, so that what does not fit fails at once."""
    ordered = sorted(rows, key=lambda row: -len(row.token_ids))
    while ordered:
        batch = ordered[:batch_size]
        if not is_padded:
            batch = [row for row in batch if len(row.token_ids) == len(batch[0].token_ids)]
        yield batch
        ordered = ordered[len(batch) :]
