"""Perplexity of held-out text under every contender, at every length, in one or several published forms."""

import hashlib
import logging
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from math import fsum, isfinite
from time import perf_counter
from types import MappingProxyType
from typing import NamedTuple, Self, cast

import numpy as np
import numpy.typing as npt
import pandas as pd
from rich.table import Table

from needles.corpus import read_split
from needles.haystack import draw_passages
from needles.passage import Passage
from needles.tokenizer import Tokenizer, encode
from results.evaluation import BEYOND, TEXT_LOSSES, TextLoss
from results.measurement import candidate_key
from results.text_loss_tables import FITTED_FORM, MIN_BUCKET_TOKENS, by_context, perplexities, power_laws
from rope.factors import RescaleFactors
from search.evaluation.config import EvaluationConfig
from search.evaluation.measure import Key, Step
from search.evaluation.tables import new_table, number_text
from workers.evaluate import Contender
from workers.model import LoadedModel
from workers.perplexity import Form, TextPerplexity, text_perplexity
from workers.scorer import failure_reason, is_out_of_memory

FORM_OF_TASK: MappingProxyType[str, Form] = MappingProxyType(
    {"perplexity": "sliding", "perplexity_longlora": "longlora", "perplexity_temp-lora": "temp-lora"}
)
"""From the name of a task to the form that it measures."""
MIN_LENGTH = 8
"""Tokens of the shortest window: a quarter of it is the least stride of every form."""

_TITLES: dict[str, str] = {
    "sliding": "Perplexity, every token once (sliding window)",
    "longlora": "Perplexity, windows averaged whole (LongLoRA's form)",
    "temp-lora": "Perplexity, mean of chunks' perplexities (Temp-LoRA's form)",
}
_CHARACTERS_PER_TOKEN = 8  # a first guess, doubled until a text has its tokens

logger = logging.getLogger(__name__)


class HeldOutText(NamedTuple):
    """A text to read."""

    id: str
    """Unique in an evaluation."""
    token_ids: npt.NDArray[np.int32]
    """What the tokenizer puts before every text included, shape (tokens,)."""


class Perplexities:
    """Measures `workers.perplexity.text_perplexity` on the same texts; see `search.evaluation.measure.Measure`.

    A window longer than the original one is read with the contender's factors, all of the text, also the shorter
    chunks with which temp-lora begins; any other with the model as it was loaded.

    Args:
        loaded: The model.
        texts: At least as long as the longest window.
        forms: How windows are laid and averaged.
        lengths: Tokens of a window.
        stride: Tokens from one window to the next; None for a quarter of each window.
    """

    name = TEXT_LOSSES
    row_type = TextLoss

    def __init__(
        self,
        loaded: LoadedModel,
        texts: Sequence[HeldOutText],
        *,
        forms: Sequence[Form],
        lengths: Sequence[int],
        stride: int | None,
    ) -> None:
        self._loaded = loaded
        self._texts = texts
        self._stride = stride
        self._places = [(form, length, text) for form in forms for length in lengths for text in texts]
        self._inside: dict[Key, TextPerplexity] = {}
        self.num_units = len(self._places)

    @classmethod
    def build(cls, config: EvaluationConfig, loaded: LoadedModel, forms: Sequence[Form]) -> Self:
        """Read the texts.

        Args:
            config: The evaluation.
            loaded: Its model.
            forms: What to measure.

        Raises:
            ValueError: There is no corpus or too little of it, or a window, a stride or the texts cannot be used.
        """
        lengths = sorted(config.token_lengths)
        num_tokens = config.text_length or 2 * lengths[-1]
        if lengths[0] < MIN_LENGTH:
            raise ValueError(
                f"--lengths must be at least {MIN_LENGTH} tokens for perplexity, got {lengths[0]}. Drop it."
            )
        if num_tokens < lengths[-1]:
            raise ValueError(
                f"--text-length must be at least {lengths[-1]}, the longest of --lengths, so that a text fills it, "
                f"got {num_tokens}. Raise it, or drop the lengths beyond it."
            )
        if config.stride is not None and not (2 <= config.stride < lengths[0]):
            raise ValueError(
                f"--stride must be at least 2 and below {lengths[0]}, the shortest of --lengths, got {config.stride}. "
                "Correct it, or leave it out."
            )
        if config.corpus is None:
            raise ValueError("perplexity must have a text to read, got no --corpus. Give a file or a folder.")
        hint = "Give a longer corpus, or lower --text-length or --lengths."
        texts = held_out_texts(config, loaded, num_tokens, hint=hint)
        return cls(loaded, texts, forms=forms, lengths=lengths, stride=config.stride)

    def fingerprint(self) -> str:
        """Return the hash of all texts."""
        return texts_sha256(self._texts)

    def steps(self, contender: Contender, known: Collection[Key]) -> Iterator[Step[TextLoss]]:
        """Yield one text, read in one form and length, at a time."""
        left = [
            (form, length, text)
            for form, length, text in self._places
            if (contender.name, form, length, text.id) not in known
        ]
        yield Step([], "", len(self._places) - len(left))
        for form, length, text in left:
            yield Step([], f"perplexity {form}, {length} tokens", 0)
            yield Step([self._row(contender, form, length, text)], "", 1)

    def tables(self, rows: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
        """Return perplexities of each form by length; of the sliding one, losses by context and their power law."""
        found = perplexities(rows)
        tables = [_figures(found[found["form"] == form], contenders) for form in dict.fromkeys(found["form"])]
        sliding = rows[rows["form"] == FITTED_FORM]
        if not sliding.empty:
            tables += [*_contexts(sliding, contenders), _laws(sliding, contenders)]
        return tables

    def _row(self, contender: Contender, form: Form, length: int, text: HeldOutText) -> TextLoss:
        begun = perf_counter()
        stride = self._stride or length // 4
        told = f"a window of {length} tokens"
        if length > self._loaded.geometry.original_length:
            with enough_memory(told):
                measured = self._measured(text, contender.factors, form, length, stride)
        else:
            # The same for every contender without short factors of its own
            short = contender.factors.short
            key = (short and candidate_key(short), form, length, text.id)
            if key not in self._inside:
                with enough_memory(told):
                    self._inside[key] = self._measured(text, short, form, length, stride)
            measured = self._inside[key]
        buckets = measured.buckets
        return TextLoss(
            contender=contender.name,
            candidate=candidate_key(contender.factors),
            form=form,
            length=length,
            stride=stride,
            text=text.id,
            num_text_tokens=len(text.token_ids),
            sum_nll=finite(measured.sum_nll),
            num_tokens=measured.num_tokens,
            weighted_loss=finite(_weighted_loss(measured)),
            weight=fsum(window.weight for window in measured.windows),
            first_contexts=[bucket.first_context for bucket in buckets],
            last_contexts=[bucket.last_context for bucket in buckets],
            bucket_sums=[finite(bucket.sum_nll) for bucket in buckets],
            bucket_counts=[bucket.num_tokens for bucket in buckets],
            seconds=perf_counter() - begun,
        )

    def _measured(
        self, text: HeldOutText, factors: RescaleFactors | None, form: Form, length: int, stride: int
    ) -> TextPerplexity:
        # The last bucket ends with the window, so that its middle is that of its tokens
        edges = [*(2**power for power in range((length - 1).bit_length())), length]
        return text_perplexity(
            self._loaded, text.token_ids, factors, window=length, stride=stride, form=form, bucket_edges=edges
        )


def held_out_texts(config: EvaluationConfig, loaded: LoadedModel, num_tokens: int, *, hint: str) -> list[HeldOutText]:
    """Return stretches of the held-out part of the corpus, each of an exact number of tokens.

    Args:
        config: The evaluation; it has a corpus.
        loaded: Its model.
        num_tokens: Of each text, with what the tokenizer puts before it.
        hint: What to do where the corpus is too short, a sentence or more.

    Raises:
        ValueError: The corpus cannot be read, or it is too short.
    """
    assert config.corpus is not None
    rng = np.random.default_rng([config.seed, zlib.crc32(b"held-out texts")])
    passages = draw_passages(
        config.corpus, split="heldout", num_passages=config.num_texts, num_tokens=num_tokens, rng=rng
    )
    texts, num_characters = [], 0
    for number, passage in enumerate(passages):
        ids, read = _first_tokens(cast(Tokenizer, loaded.tokenizer), passage, num_tokens)
        if len(ids) < num_tokens:
            raise ValueError(
                f"the held-out part of {config.corpus} must have {num_tokens} tokens for a text, got {len(ids)}. {hint}"
            )
        num_characters += read * num_tokens // len(ids)
        texts.append(HeldOutText(f"text-{number}", np.array(ids[:num_tokens], dtype=np.int32)))
    there = len(read_split(config.corpus, "heldout", num_characters=num_characters).text)
    if there < num_characters:
        logger.warning(
            "the held-out part of %s has about %d tokens, and %d texts of %d tokens from it overlap",
            config.corpus,
            round(there / num_characters * config.num_texts * num_tokens),
            config.num_texts,
            num_tokens,
        )
    return texts


def texts_sha256(texts: Sequence[HeldOutText]) -> str:
    """Return the hash of texts.

    Args:
        texts: In their order.
    """
    digest = hashlib.sha256()
    for text in texts:
        digest.update(f"{text.id} {len(text.token_ids)} ".encode() + text.token_ids.tobytes())
    return digest.hexdigest()


@contextmanager
def enough_memory(told: str) -> Iterator[None]:
    """Turn what a library raises for want of memory into one kind of error.

    Args:
        told: What is read inside.

    Raises:
        MemoryError: It does not fit.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"memory must hold {told}, got: {failure_reason(error)}. Lower --lengths, or take another device."
        ) from error


def finite(number: float) -> float | None:
    """Return a number that a row can hold, None for one that is not finite.

    Args:
        number: Any.
    """
    return number if isfinite(number) else None


def _first_tokens(tokenizer: Tokenizer, passage: Passage, num_tokens: int) -> tuple[list[int], int]:
    """Return the tokens of as much of a passage as has enough of them, where it has, and of how many characters."""
    num_characters = _CHARACTERS_PER_TOKEN * num_tokens
    while True:
        text = passage.text[:num_characters]
        ids = encode(tokenizer, text, add_special_tokens=True)
        # A token more: the last one may be of a word that was cut
        if len(ids) > num_tokens or len(text) == len(passage.text):
            return ids, len(text)
        num_characters *= 2


def _weighted_loss(measured: TextPerplexity) -> float:
    """Return the sum over windows of the loss, in temp-lora the perplexity, times the window's weight."""
    losses = np.array([window.sum_nll / window.num_tokens for window in measured.windows])
    if measured.form == "temp-lora":
        with np.errstate(over="ignore"):
            losses = np.exp(losses)
    products = losses * [window.weight for window in measured.windows]
    return fsum(products.tolist()) if np.isfinite(products).all() else float("nan")


def _figures(found: pd.DataFrame, contenders: Sequence[Contender]) -> Table:
    lengths = sorted(found["length"].unique())
    table = new_table(_TITLES[found["form"].iloc[0]], ["factors"], [str(length) for length in lengths])
    figures = found.set_index(["contender", "length"])["perplexity"]
    for name, factors in contenders:
        cells = [
            number_text(figures[name, length]) + (BEYOND if length > factors.target_length else "")
            for length in lengths
        ]
        table.add_row(name, *cells)
    num_texts = found["num_texts"].max()
    table.caption = f"{BEYOND}: longer than the factors are for. Columns: tokens of a window; over {num_texts} texts."
    return table


def _contexts(sliding: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
    """Return the table of losses by context; none without a bucket that has enough tokens."""
    found = by_context(sliding)
    found = found[(found["length"] == found["length"].max()) & (found["num_tokens"] >= MIN_BUCKET_TOKENS)]
    if found.empty:
        return []
    firsts = sorted(found["first_context"].unique())
    length = sliding["length"].max()
    title = f"Loss by context in windows of {length} tokens, nats per token"
    table = new_table(title, ["factors"], [f"{first}+" for first in firsts])
    losses = found.set_index(["contender", "first_context"])["loss"]
    for contender in contenders:
        table.add_row(contender.name, *(number_text(losses[contender.name, first]) for first in firsts))
    table.caption = (
        "Columns: fewest tokens seen before the one predicted, up to the next column; those with fewer than "
        f"{MIN_BUCKET_TOKENS} tokens scored are left out."
    )
    return [table]


def _laws(sliding: pd.DataFrame, contenders: Sequence[Contender]) -> Table:
    """Return the table of the fitted laws, without columns where there is none, and why."""
    laws = power_laws(sliding).set_index("contender")
    names = ("alpha", "beta", "gamma")
    table = new_table("Power law of context, loss = (alpha / context)^beta + gamma", ["factors"], [*names, "residual"])
    reasons = []
    for contender in contenders:
        law = laws.loc[contender.name]
        if law["reason"]:
            reasons.append(f"{contender.name} is not fitted: {law['reason']}")
            continue
        estimates = [f"{law[name]:.4g} ({law[f'{name}_low']:.3g} to {law[f'{name}_high']:.3g})" for name in names]
        table.add_row(contender.name, *estimates, f"{law['residual']:.3g}")
    if not table.rows:
        table = new_table(str(table.title), [], [])
        table.caption = "\n".join(reasons)
        return table
    table.caption = "\n".join(["alpha in tokens; in brackets 95 % confidence intervals.", *reasons])
    return table
