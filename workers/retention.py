"""How far factors move the logits of a text inside the original window, served with the window switch and without.

Shapes: T tokens of a text, K positions of a piece, N hidden size, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rope.factors import RescaleFactors
from workers.model import LoadedModel
from workers.perplexity import checked_ids, hidden_states, logits_of, num_at_once
from workers.rope_patch import RopePatch

_NUM_COPIES = 8  # of a piece's logits in float32: two models', their logarithms in float64, and what is summed


class Moved(NamedTuple):
    """How far logits are from the original model's; sums over positions, means are taken last."""

    largest_difference: float
    """Between the two logits of any token at any position; NaN where one is no number."""
    sum_divergence: float
    """KL(original || moved) summed over positions, nats; NaN or infinite where logits are."""
    num_same_top: int
    """Positions at which the likeliest token is the same."""
    num_positions: int
    """Positions compared."""


class Retained(NamedTuple):
    """One text, served in two ways."""

    switched: Moved
    """The factors were installed and more than the original window was read with them; then the short side again: the
    model as it was loaded, or with the factors' short ones."""
    pinned: Moved
    """The factors, with their attention temperature, at this length too, as engines with one list serve."""


@torch.inference_mode()
def retention(
    loaded: LoadedModel, token_ids: Sequence[int] | npt.NDArray[np.integer], factors: RescaleFactors
) -> Retained:
    """Return how far factors move the model's logits on one text. The model is restored.

    The switch is that of `workers.generate.generate` to factors None inside the original window: a `RopePatch` of its
    own installs the factors, the model reads the text over and over until there is a token more than the original
    window, and the patch restores. It must leave every logit as it was, bit for bit. Logits are never held for all
    positions at once.

    Args:
        loaded: The model; what it computes now is the original.
        token_ids: The text, special tokens included, at most the original window; shape (tokens,).
        factors: Those for lengths beyond the original window.

    Returns:
        Both servings.

    Raises:
        ValueError: The text has fewer than two tokens or one that the model does not know, or the factors are for
            another model.
    """
    ids_T = checked_ids(loaded, token_ids)
    num_beyond = max(len(ids_T), loaded.geometry.original_length) + 1
    beyond_T = ids_T.repeat(-(-num_beyond // len(ids_T)))[:num_beyond]
    original = _read(loaded, ids_T)
    with RopePatch(loaded.model) as patch:
        patch.install(factors)
        pinned = _moved(loaded, ids_T, original, _read(loaded, ids_T))
        _read(loaded, beyond_T, num_kept=1)
        if factors.short is None:
            patch.restore()
        else:
            patch.install(factors.short)
        switched = _moved(loaded, ids_T, original, _read(loaded, ids_T))
    return Retained(switched, pinned)


@torch.inference_mode()
def hidden_sha256(loaded: LoadedModel, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> str:
    """Return the hash of what a model's decoder makes of a text, by which two states of the model are told apart.

    Args:
        loaded: The model.
        token_ids: The text; shape (tokens,).

    Raises:
        ValueError: As `retention`, of the text.
    """
    hidden_1TN = _read(loaded, checked_ids(loaded, token_ids)).hidden
    return sha256(hidden_1TN.contiguous().view(torch.uint8).cpu().numpy().tobytes()).hexdigest()


class _Decoded(NamedTuple):
    """A text as it leaves the decoder."""

    kind: type
    """Of the decoder's output."""
    hidden: Tensor
    """Shape (1, T, N)."""


def _read(loaded: LoadedModel, ids_T: Tensor, num_kept: int | None = None) -> _Decoded:
    return _Decoded(*hidden_states(loaded, ids_T.to(loaded.device)[None], num_kept or len(ids_T)))


def _moved(loaded: LoadedModel, ids_T: Tensor, original: _Decoded, moved: _Decoded) -> Moved:
    """Return how far one reading is from the other."""
    largest, sum_divergence, num_same_top = 0.0, 0.0, 0
    for original_KV, moved_KV in _pieces(loaded, ids_T, original, moved):
        # Equal infinities differ by nothing, but subtracted they are no number
        differences_KV = torch.where(original_KV == moved_KV, 0.0, (original_KV - moved_KV).abs())
        largest = float(np.maximum(largest, differences_KV.max().item()))  # NaN wins
        sum_divergence += _divergence(original_KV, moved_KV)
        num_same_top += int((original_KV.argmax(dim=-1) == moved_KV.argmax(dim=-1)).sum())
    return Moved(largest, sum_divergence, num_same_top, len(ids_T))


def _pieces(loaded: LoadedModel, ids_T: Tensor, original: _Decoded, moved: _Decoded) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of both at the same positions, shapes (K, V), float32."""
    ids_1T = ids_T.to(loaded.device)[None]
    num_positions = max(1, num_at_once(loaded) // _NUM_COPIES)
    for start in range(0, len(ids_T), num_positions):
        original_KV, moved_KV = (
            logits_of(loaded, kind, hidden_1TN[:, start : start + num_positions], ids_1T).float()
            for kind, hidden_1TN in (original, moved)
        )
        yield original_KV, moved_KV


def _divergence(original_KV: Tensor, moved_KV: Tensor) -> float:
    """Return KL(original || moved), summed over positions, nats."""
    log_p_KV, log_q_KV = (logits_KV.double().log_softmax(dim=-1) for logits_KV in (original_KV, moved_KV))
    p_KV = log_p_KV.exp()
    # A token that the original excludes adds nothing, whatever its logarithms
    return float(torch.where(p_KV == 0.0, 0.0, p_KV * (log_p_KV - log_q_KV)).sum())
