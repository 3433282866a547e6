"""Generates with the window switch: short factors inside the original window, long ones for everything beyond it."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedModel

from rope.factors import RescaleFactors
from workers.decoding import Decoding, Ended, Row, decode
from workers.geometry import rope_geometry
from workers.model import input_device
from workers.rope_patch import RopePatch

Prompt = Sequence[int] | npt.NDArray[np.integer]
"""Token ids of a prompt, whatever begins it included, shape (num_tokens,)."""
SWITCHING = ("dynamic", "longrope")
"""Scalings of transformers that choose frequencies by the length of what a forward reads."""

logger = logging.getLogger(__name__)


class Generation(NamedTuple):
    """What was generated for one prompt."""

    token_ids: list[int]
    """Without the prompt; with the stop token where one ended it."""
    ended: Ended
    """Why there are no more."""


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    decoding: Decoding,
    *,
    long: RescaleFactors,
    short: RescaleFactors | None = None,
    original_length: int | None = None,
    warns: bool = True,
) -> list[Generation]:
    """Return what a model writes after each prompt, with the factors that belong to each row's length.

    A token is chosen with the short factors where at most `original_length` tokens come before it, with the long ones
    where there are more; and whichever holds, all tokens before it were read with it. So a row that outgrows the
    original window is read anew, once, with the long factors and a new cache, and keeps them. Each set's attention
    temperature goes with it. Equal sets need no switch and make none.

    Tokens are those of the row alone, without a cache and in one chunk, up to the rounding of sums that are taken in
    another order: where two tokens are likeliest to the last bits, either may come.

    Args:
        model: Any causal LM of transformers that rotates, in any precision, on any device; no factors are installed by
            another `RopePatch`. It is put in evaluation mode, and given back as it was, after an exception too.
        prompts: Token ids, at least one each.
        decoding: How tokens are chosen.
        long: Factors beyond the original window.
        short: Factors inside it; None for the model as it was loaded, bit for bit.
        original_length: Most tokens for which the short factors hold; None for that of the long ones.
        warns: Whether the log says that a row may outgrow the target of the long factors; off for a caller of many
            batches, who says it once.

    Returns:
        One for each prompt, in their order.

    Raises:
        ValueError: A prompt is empty or has ids that the model does not know, there are not as many seeds as prompts,
            the factors are for another model, original_length is below 1, or the model does not rotate or switches by
            itself inside the original window.

    Source: LongRoPE2, arXiv:2502.20082, its inference; the border is that of transformers' longrope: long where the
    number of tokens exceeds the original length.
    """
    border = long.original_length if original_length is None else original_length
    if border < 1:
        raise ValueError(f"original_length must be at least 1 token, got {border}. Correct it.")
    rows = _rows(model, prompts, decoding)
    stop_token_ids = _stop_token_ids(model, decoding)
    if warns:
        _warn_beyond_target(rows, decoding, long)
    with _evaluating(model), RopePatch(model) as patch:
        # Both at once: factors of another model are refused before anything is read
        for factors in (long, *([short] if short else [])):
            patch.install(factors)
        if short != long:
            if short is None:
                patch.restore()
                _check_own_switch(model, border)
            else:
                patch.install(short)
            inside = [row for row in rows if len(row.token_ids) <= border]
            decode(model, inside, decoding, stop_token_ids, most_read=border)
            patch.install(long)
        decode(model, [row for row in rows if row.ended is None], decoding, stop_token_ids)
    return [_generation(row) for row in rows]


def _rows(model: PreTrainedModel, prompts: Sequence[Prompt], decoding: Decoding) -> list[Row]:
    seeds = [decoding.seed] * len(prompts) if isinstance(decoding.seed, int) else list(decoding.seed)
    if len(seeds) != len(prompts):
        raise ValueError(f"seed must be one number or {len(prompts)}, one per prompt, got {len(seeds)}. Correct it.")
    device = input_device(model)
    vocabulary = model.get_input_embeddings().num_embeddings
    assert isinstance(vocabulary, int)
    return [
        Row(_checked_ids(prompt, number, vocabulary), seed, device)
        for number, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]


def _checked_ids(prompt: Prompt, number: int, vocabulary: int) -> list[int]:
    ids_T = np.asarray(prompt)
    if ids_T.ndim != 1 or ids_T.size == 0 or ids_T.dtype.kind not in "iu":
        raise ValueError(
            f"prompt {number} must be a list of at least one token id, got shape {ids_T.shape} of {ids_T.dtype}. "
            "Tokenize it, with the token that begins a text where there is one."
        )
    if ids_T.min() < 0 or ids_T.max() >= vocabulary:
        raise ValueError(
            f"prompt {number} must have token ids from 0 to {vocabulary - 1}, got {ids_T.min()} to {ids_T.max()}. "
            "Was it tokenized for another model?"
        )
    ids: list[int] = ids_T.tolist()
    return ids


def _stop_token_ids(model: PreTrainedModel, decoding: Decoding) -> frozenset[int]:
    if decoding.stop_token_ids is not None:
        return frozenset(decoding.stop_token_ids)
    own = getattr(model.generation_config, "eos_token_id", None)
    return frozenset([] if own is None else [own] if isinstance(own, int) else own)


def _warn_beyond_target(rows: Sequence[Row], decoding: Decoding, long: RescaleFactors) -> None:
    most = max((len(row.token_ids) for row in rows), default=0) + decoding.num_new_tokens
    if most > long.target_length:
        logger.warning(
            "a prompt and what follows it may reach %d tokens, the factors are for %d: expect worse beyond",
            most,
            long.target_length,
        )


def _check_own_switch(model: PreTrainedModel, border: int) -> None:
    geometry = rope_geometry(model.config)
    if geometry.native_scaling in SWITCHING and border > geometry.original_length:
        raise ValueError(
            f"original_length must be at most {geometry.original_length} for a model that was saved with "
            f"{geometry.native_scaling} scaling, which switches there by itself, got {border}. Give short factors."
        )


@contextmanager
def _evaluating(model: PreTrainedModel) -> Iterator[None]:
    """Switch dropout and all else that belongs to training off."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _generation(row: Row) -> Generation:
    assert row.ended is not None
    return Generation(row.generated, row.ended)
