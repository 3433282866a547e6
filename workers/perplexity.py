"""Perplexity of a long text under installed factors, in three published forms that are not the same number.

Shapes: T tokens of a window, K tokens kept, N hidden size, V vocabulary, P buckets.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from itertools import pairwise
from math import fsum
from typing import Literal, NamedTuple, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from rope.factors import RescaleFactors
from workers.attention import PREFIX
from workers.memory import piece_length
from workers.model import LoadedModel
from workers.trimmed import Trim, set_forward, trimmed_forward

Form = Literal["sliding", "longlora", "temp-lora"]
FORMS: tuple[Form, ...] = get_args(Form)

LOGIT_BYTES = {"cuda": 2**30, "cpu": 2**26}
"""Memory for the logits of one piece in float32, by kind of device."""

Counts = npt.NDArray[np.int64]
Sums = npt.NDArray[np.float64]


class Window(NamedTuple):
    """A stretch of a text that is read by itself; its last tokens are scored."""

    start: int
    """Index of its first token."""
    scored: int
    """Index of the first token that is scored; a window's own first token never is."""
    end: int
    """Index after its last token, the last one scored."""


class WindowLoss(NamedTuple):
    """What one window of a text gave; a row of a table."""

    start: int
    scored: int
    end: int
    """As `Window`."""
    sum_nll: float
    """Negative log-likelihood summed over the scored tokens, nats."""
    num_tokens: int
    """Tokens scored."""
    weight: float
    """Of the window in its form's mean."""


class BucketLoss(NamedTuple):
    """Losses of tokens before which the model saw a number of tokens in a range; a row of a table."""

    first_context: int
    """Fewest tokens seen."""
    last_context: int
    """Most tokens seen."""
    sum_nll: float
    """Nats."""
    num_tokens: int
    """Tokens scored, each as often as it was."""


@dataclass(frozen=True, kw_only=True)
class TextPerplexity:
    """Sums and counts of one text, or of several; means are taken last."""

    form: Form
    """How windows are laid and averaged; see `text_perplexity`."""
    windows: tuple[WindowLoss, ...]
    """In the order of the text."""
    bucket_edges: Counts = field(repr=False)
    """Tokens seen before the scored one, at the borders of buckets, ascending, shape (P + 1,): bucket i holds
    edges[i] <= context < edges[i + 1]."""
    bucket_sums: Sums = field(repr=False)
    """Negative log-likelihood of each bucket, nats, shape (P,)."""
    bucket_counts: Counts = field(repr=False)
    """Tokens of each bucket, shape (P,)."""

    @property
    def sum_nll(self) -> float:
        """Nats over all scored tokens, a token that two windows score twice."""
        return fsum(window.sum_nll for window in self.windows)

    @property
    def num_tokens(self) -> int:
        """Tokens scored, each as often as it was."""
        return sum(window.num_tokens for window in self.windows)

    @property
    def perplexity(self) -> float:
        """The figure of this form: weighted means of windows' losses, in temp-lora of their perplexities."""
        losses = np.array([window.sum_nll / window.num_tokens for window in self.windows])
        weights = np.array([window.weight for window in self.windows])
        if self.form == "temp-lora":
            return float(weights @ np.exp(losses) / weights.sum())
        return float(np.exp(weights @ losses / weights.sum()))

    @property
    def buckets(self) -> list[BucketLoss]:
        """Loss by how much context the model saw, buckets without tokens left out."""
        rows = zip(
            self.bucket_edges[:-1].tolist(),
            (self.bucket_edges[1:] - 1).tolist(),
            self.bucket_sums.tolist(),
            self.bucket_counts.tolist(),
            strict=True,
        )
        return [BucketLoss(*row) for row in rows if row[3]]


def text_perplexity(
    loaded: LoadedModel,
    token_ids: Sequence[int] | npt.NDArray[np.integer],
    factors: RescaleFactors | None,
    *,
    window: int,
    stride: int,
    form: Form = "sliding",
    bucket_edges: Sequence[int] | None = None,
) -> TextPerplexity:
    """Return the losses of a text's tokens, read in windows, with factors installed. The model is restored.

    Forms:
        sliding: Every token but the first is scored exactly once and weighs the same. The first window is scored
            whole; then each scores the next `stride` tokens (the last one what is left) with all that fits before
            them, `window - stride` tokens of context or more. (Press et al., arXiv:2108.12409, appendix B.)
        longlora: A window starts every `stride` tokens, each is averaged whole and the means are averaged, so most
            tokens count often, with much context and with little. As in the published program the last window that
            fits is left out, and so is a text's end. A text too short for that is read as one window. (LongLoRA,
            dvlab-research/LongLoRA, eval.py; there with stride 256.)
        temp-lora: Chunks of `stride` tokens, each with up to `window - stride` tokens before it; the mean of the
            chunks' perplexities, weighted by their tokens, which lies above the exponential of the mean loss. The
            first chunk weighs all its tokens though its first is not scored. (Temp-LoRA, arXiv:2401.11504,
            TemporaryLoRA/Temp-LoRA, trainer/acc_pg19_trainer.py.)

    On a text that fits one window (temp-lora: one chunk) all three are the plain forward's. The three figures are
    not comparable with each other on longer ones.

    Args:
        loaded: The model.
        token_ids: The text, special tokens included; shape (tokens,).
        factors: Rescale factors; None for the model as it was saved.
        window: Most tokens read at once.
        stride: Tokens from one window to the next; below `window`, but for longlora, and at least 2 in temp-lora.
        form: As above.
        bucket_edges: See `TextPerplexity`; powers of two if None. A token whose context lies outside is in no bucket.

    Returns:
        Sums and counts; a loss that is not finite stays in them.

    Raises:
        ValueError: The form is unknown, the text has fewer than two tokens or one that the model does not know,
            window, stride or edges are out of range, or the factors are for another model.
    """
    ids_T = checked_ids(loaded, token_ids)
    _check_layout(form, window, stride)
    edges = _edges(bucket_edges, window)
    windows = list(_windows(form, len(ids_T), window, stride))
    sums, counts = np.zeros(len(edges) - 1), np.zeros(len(edges) - 1, dtype=np.int64)
    losses = []
    with loaded.patch:
        if factors is not None:
            loaded.patch.install(factors)
        for laid in windows:
            nll = _window_nll(loaded, ids_T, laid)
            losses.append(WindowLoss(*laid, fsum(nll.tolist()), len(nll), _weight(form, laid)))
            bucket = np.searchsorted(edges, np.arange(laid.end - len(nll), laid.end) - laid.start, side="right") - 1
            is_inside = (bucket >= 0) & (bucket < len(sums))
            np.add.at(sums, bucket[is_inside], nll[is_inside])
            np.add.at(counts, bucket[is_inside], 1)
    return TextPerplexity(form=form, windows=tuple(losses), bucket_edges=edges, bucket_sums=sums, bucket_counts=counts)


def pooled(measured: Sequence[TextPerplexity]) -> TextPerplexity:
    """Return several texts' sums and counts as one: windows keep their weights, buckets are added.

    Args:
        measured: At least one; of one form, with the same buckets.

    Raises:
        ValueError: There is none, or forms or buckets differ.
    """
    if not measured:
        raise ValueError("a pooled perplexity must have at least one text, got none. Measure one.")
    first = measured[0]
    for other in measured:
        if other.form != first.form or not np.array_equal(other.bucket_edges, first.bucket_edges):
            raise ValueError(
                f"pooled texts must have one form and the same buckets, got {first.form} and {other.form}, or others. "
                "Measure all of them alike."
            )
    return TextPerplexity(
        form=first.form,
        windows=tuple(window for text in measured for window in text.windows),
        bucket_edges=first.bucket_edges,
        bucket_sums=np.sum([text.bucket_sums for text in measured], axis=0),
        bucket_counts=np.sum([text.bucket_counts for text in measured], axis=0),
    )


def _windows(form: Form, num_tokens: int, window: int, stride: int) -> Iterator[Window]:
    if form == "sliding":
        ends = [min(window, num_tokens), *range(window + stride, num_tokens, stride)]
        if num_tokens > window:
            ends.append(num_tokens)
        for before, end in pairwise([0, *ends]):
            start = max(0, end - window)
            yield Window(start, max(before, 1), end)
    elif form == "longlora":
        for start in range(0, num_tokens - window, stride)[:-1] or range(1):
            yield Window(start, start + 1, min(start + window, num_tokens))
    else:
        for middle in range(0, num_tokens, stride):
            yield Window(max(0, middle + stride - window), max(middle, 1), min(middle + stride, num_tokens))


def _weight(form: Form, laid: Window) -> float:
    if form == "longlora":
        return 1.0
    is_first_chunk = form == "temp-lora" and laid.scored == 1
    return float(laid.end - laid.scored + is_first_chunk)


@torch.inference_mode()
def _window_nll(loaded: LoadedModel, ids_T: Tensor, laid: Window) -> Sums:
    """Return the negative log-likelihood of a window's scored tokens, nats, in order."""
    # A position's logits are for the token behind it
    num_kept = laid.end - laid.scored + 1
    input_ids_1T = ids_T[laid.start : laid.end].to(loaded.device)[None]
    output, hidden_1KN = hidden_states(loaded, input_ids_1T, num_kept)
    targets_K = input_ids_1T[0, -num_kept + 1 :]
    nll = []
    for start in range(0, num_kept - 1, num_at_once(loaded)):
        piece = slice(start, min(start + num_at_once(loaded), num_kept - 1))
        logits_KV = logits_of(loaded, output, hidden_1KN[:, piece], input_ids_1T).float()
        targets = targets_K[piece].to(logits_KV.device)
        nll.append(functional.cross_entropy(logits_KV, targets, reduction="none").double().cpu().numpy())
    return np.concatenate(nll)


def hidden_states(loaded: LoadedModel, input_ids_1T: Tensor, num_kept: int) -> tuple[type, Tensor]:
    """Return the kind of the decoder's output, and its hidden states at the last positions, shape (1, K, N).

    Args:
        loaded: The model, with whatever factors are installed.
        input_ids_1T: One text, shape (1, T), on the model's device.
        num_kept: K.
    """
    trimmed: AbstractContextManager[None] = nullcontext()
    if loaded.is_trimmed:
        trim = Trim(num_kept=num_kept, piece_length=piece_length(loaded.model, 1))
        trimmed = trimmed_forward(loaded.model, trim, attention=PREFIX + loaded.attention)
    with trimmed:
        output = loaded.model.get_decoder()(input_ids=input_ids_1T, use_cache=False)  # type: ignore[no-untyped-call]
    hidden: Tensor = output.last_hidden_state
    return type(output), hidden[:, -num_kept:]


def logits_of(loaded: LoadedModel, kind: type, hidden_1KN: Tensor, input_ids_1T: Tensor) -> Tensor:
    """Return the logits of a few positions, shape (K, V), by the model's own code round a decoder that is done.

    Args:
        loaded: The model.
        kind: Of the decoder's output, as `hidden_states` returns it.
        hidden_1KN: Hidden states of the positions, shape (1, K, N).
        input_ids_1T: The text, shape (1, T); its first K tokens are handed on and not read.
    """
    decoder = loaded.model.get_decoder()  # type: ignore[no-untyped-call]
    own = decoder.__dict__.get("forward")
    set_forward(decoder, lambda *_, **__: kind(last_hidden_state=hidden_1KN))
    try:
        # Which tokens does not matter: nothing reads them
        logits_1KV: Tensor = loaded.model(input_ids=input_ids_1T[:, : hidden_1KN.shape[1]], use_cache=False).logits
    finally:
        set_forward(decoder, own)
    return logits_1KV[0]


def num_at_once(loaded: LoadedModel) -> int:
    """Return how many positions' logits are in memory at once.

    Args:
        loaded: The model.
    """
    budget = LOGIT_BYTES.get(loaded.device.type, LOGIT_BYTES["cpu"])
    vocabulary_size: int = loaded.model.config.get_text_config().vocab_size
    return max(1, budget // (4 * vocabulary_size))


def checked_ids(loaded: LoadedModel, token_ids: Sequence[int] | npt.NDArray[np.integer]) -> Tensor:
    """Return the token ids of a text, shape (T,), int64, on the CPU.

    Args:
        loaded: The model that reads them.
        token_ids: The text, shape (T,).

    Raises:
        ValueError: There are fewer than two, they are not in one row, or the model does not know one of them.
    """
    ids = np.asarray(token_ids, dtype=np.int64)
    if ids.ndim != 1 or len(ids) < 2:
        raise ValueError(f"a text must have at least 2 tokens in one row, got shape {ids.shape}. Give a longer text.")
    vocabulary_size = loaded.model.config.get_text_config().vocab_size
    if ids.min() < 0 or ids.max() >= vocabulary_size:
        raise ValueError(
            f"a text must hold token ids from 0 to below {vocabulary_size}, the model's vocabulary, got {ids.min()} to "
            f"{ids.max()}. Was it tokenised for another model?"
        )
    return torch.from_numpy(ids)


def _check_layout(form: Form, window: int, stride: int) -> None:
    if form not in FORMS:
        raise ValueError(f"form must be one of {', '.join(FORMS)}, got {form}. Choose one of them.")
    if window < 2:
        raise ValueError(f"window must be at least 2 tokens, got {window}. Give a longer one.")
    fewest = 2 if form == "temp-lora" else 1
    # In the two other forms a stride of the whole window would leave each window's first token unscored
    if stride < fewest or (form != "longlora" and stride >= window):
        bound = "" if form == "longlora" else f" and below the window of {window}"
        raise ValueError(f"stride must be at least {fewest}{bound} in the form {form}, got {stride}. Correct it.")


def _edges(edges: Sequence[int] | None, window: int) -> Counts:
    if edges is None:
        return 2 ** np.arange(max(1, (window - 1).bit_length()) + 1, dtype=np.int64)
    if len(edges) < 2 or any(low >= high for low, high in pairwise(edges)):
        raise ValueError(f"bucket_edges must be two numbers or more that grow, got {list(edges)}. Correct them.")
    return np.array(edges, dtype=np.int64)
