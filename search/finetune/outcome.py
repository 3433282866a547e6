"""What is measured before and after a fine-tuning: the same held-out documents and texts, by either model."""

import hashlib
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from needles.corpus import Split
from needles.document import NeedleDocument, build_documents
from needles.haystack import draw_passages
from needles.prompts import RULER_BASE, chat_prompt
from needles.tokenizer import encode
from results.measurement import perplexity
from results.tuning_outcome import Measured
from rope.factors import RescaleFactors
from search.finetune.config import MeasureConfig
from workers.local import LocalScorer
from workers.model import LoadedModel, ModelDescription
from workers.perplexity import pooled, text_perplexity
from workers.scorer import Task
from workers.scoring import NeedleScoring
from workers.tuning.kept_logits import LogProbabilities, log_probabilities

_SPLIT: Split = "heldout"

logger = logging.getLogger(__name__)


class WindowFactors(NamedTuple):
    """With what a model rotates in either window."""

    long: RescaleFactors
    """Beyond the original length."""
    short: RescaleFactors
    """Up to it; explicit, so that a saved folder with a scaling of its own is measured as the untuned model is."""


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """Documents and texts, the same before and after."""

    target: tuple[NeedleDocument, ...]
    """Needle documents of the target length."""
    original: tuple[NeedleDocument, ...]
    """Needle documents of the original length."""
    texts: tuple[npt.NDArray[np.int32], ...]
    """For plain perplexity; special tokens in front included, of one length each."""

    @property
    def fingerprint(self) -> str:
        """Changes with any document or text."""
        digest = hashlib.sha256("".join(document.sha256 for document in (*self.target, *self.original)).encode())
        for text in self.texts:
            digest.update(text.astype("<i4").tobytes())
        return digest.hexdigest()[:16]


def build_yardstick(
    settings: MeasureConfig, model: ModelDescription, *, corpus: str, column: str, target_length: int, seed: int
) -> Yardstick:
    """Return documents and texts from the held-out part of a corpus.

    Args:
        settings: How many, and how.
        model: Its tokenizer and original window.
        corpus: Where their text is from.
        column: Of the text in it.
        target_length: Tokens.
        seed: The run's.

    Raises:
        ValueError: The corpus cannot be read or is too short.
    """
    prompt = chat_prompt(model.tokenizer) if settings.prompt == "chat" else RULER_BASE
    built: list[NeedleDocument] = []
    for part, (num, length) in enumerate(
        ((settings.num_target, target_length), (settings.num_original, model.geometry.original_length))
    ):
        built += build_documents(
            model.tokenizer,
            corpus,
            split=_SPLIT,
            num_documents=num,
            length=length,
            rng=np.random.default_rng([seed, part]),
            prompt=prompt,
            taken=[document.needle for document in built],
            column=column,
        )
    num_tokens = settings.text_length or 2 * target_length
    passages = draw_passages(
        corpus,
        split=_SPLIT,
        num_passages=settings.num_texts,
        num_tokens=num_tokens,
        rng=np.random.default_rng([seed, 2]),
        column=column,
    )
    texts = [encode(model.tokenizer, passage.text, add_special_tokens=True) for passage in passages]
    shortest = min(map(len, texts))
    if shortest < num_tokens:
        raise ValueError(
            f"the held-out part of {corpus} must have {num_tokens} tokens for a text, got {shortest}. Give a longer "
            "one as measure.corpus, or lower measure.text_length."
        )
    return Yardstick(
        target=tuple(built[: settings.num_target]),
        original=tuple(built[settings.num_target :]),
        texts=tuple(np.array(ids[:num_tokens], dtype=np.int32) for ids in texts),
    )


def measure(loaded: LoadedModel, factors: WindowFactors, yardstick: Yardstick) -> Measured:
    """Return needle and plain perplexity of a model in both windows; the model is restored.

    Args:
        loaded: The model.
        factors: With what it rotates.
        yardstick: What it reads.

    Raises:
        ValueError: Factors do not change what the model computes, or the longest document does not fit.
    """
    documents = [*yardstick.target, *yardstick.original]
    scorer = LocalScorer(NeedleScoring(loaded, documents), documents)
    target, original = factors.long.target_length, factors.long.original_length
    return Measured(
        needle_target=_needles(scorer, factors.long, yardstick.target),
        needle_original=_needles(scorer, factors.short, yardstick.original),
        plain_target=_plain(loaded, factors.long, yardstick.texts, target),
        plain_original=_plain(loaded, factors.short, yardstick.texts, original),
    )


def measure_short(loaded: LoadedModel, short: RescaleFactors, yardstick: Yardstick) -> Measured:
    """Return what `measure` does of the short window alone, under other factors; NaN at the target.

    Args:
        loaded: The model.
        short: With what it rotates there.
        yardstick: As there.
    """
    scorer = LocalScorer(NeedleScoring(loaded, yardstick.original), yardstick.original)
    return Measured(
        needle_target=math.nan,
        needle_original=_needles(scorer, short, yardstick.original),
        plain_target=math.nan,
        plain_original=_plain(loaded, short, yardstick.texts, short.original_length),
    )


def short_window(loaded: LoadedModel, factors: WindowFactors, yardstick: Yardstick) -> LogProbabilities:
    """Return the log probabilities of the texts' beginnings in the short window, see `log_probabilities`.

    Args:
        loaded: The model.
        factors: With what it rotates.
        yardstick: What it reads.
    """
    texts = [text[: factors.short.original_length] for text in yardstick.texts]
    return log_probabilities(loaded, texts, factors.short)


def _needles(scorer: LocalScorer, factors: RescaleFactors, documents: Sequence[NeedleDocument]) -> float:
    found = []
    for document in documents:
        scorer.submit(Task(factors, (document.id,)))
        found += scorer.collect()
    failure = next((measurement.failure for measurement in found if measurement.failure is not None), None)
    if failure is not None:
        logger.warning("needles at %d tokens could not be measured: %s", documents[0].length, failure)
    return perplexity(found)


def _plain(loaded: LoadedModel, factors: RescaleFactors, texts: Sequence[npt.NDArray[np.int32]], window: int) -> float:
    stride = max(1, window // 4)
    return pooled([text_perplexity(loaded, text, factors, window=window, stride=stride) for text in texts]).perplexity
