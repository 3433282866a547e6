"""Short-window retention: what is left of the original model at lengths that it was trained for."""

import logging
import zlib
from collections.abc import Collection, Iterator, Sequence
from itertools import takewhile
from time import perf_counter
from typing import Self, cast

import numpy as np
import pandas as pd
from rich.table import Table

from needles.tokenizer import Tokenizer
from results.evaluation import RETENTION, Retention
from results.measurement import candidate_key
from results.text_loss_tables import retained
from search.evaluation.config import EvaluationConfig
from search.evaluation.measure import Key, Step
from search.evaluation.perplexities import HeldOutText, enough_memory, finite, held_out_texts, texts_sha256
from search.evaluation.tables import new_table, number_text
from workers.evaluate import Contender
from workers.model import LoadedModel
from workers.retention import Moved, hidden_sha256, retention

TASK = "retention"
EXACT = "exact"
"""What the table says of logits that are the original model's, bit for bit."""

logger = logging.getLogger(__name__)


class RetentionCheck:
    """Compares logits with the original model's inside its window; see `search.evaluation.measure.Measure`.

    Two servings: with the window switch, which without short factors must change nothing, and the factors pinned at
    every length.

    Args:
        loaded: The model, as it was loaded.
        texts: As long as the longest of `lengths`; for a shorter one their beginnings are read.
        lengths: Tokens read, at most the original window.
    """

    name = RETENTION
    row_type = Retention

    def __init__(self, loaded: LoadedModel, texts: Sequence[HeldOutText], *, lengths: Sequence[int]) -> None:
        self._loaded = loaded
        self._texts = texts
        self._places = [(length, text) for length in lengths for text in texts]
        self._untouched = self._state()
        self.num_units = len(self._places)

    @classmethod
    def build(cls, config: EvaluationConfig, loaded: LoadedModel) -> Self:
        """Read the texts, or make them of random tokens where there is no corpus.

        Args:
            config: The evaluation.
            loaded: Its model.

        Raises:
            ValueError: The corpus cannot be read, or its held-out part is shorter than the original window.
        """
        window = loaded.geometry.original_length
        lengths = {window, window // 4, *config.token_lengths}
        inside = sorted(length for length in lengths if 2 <= length <= window)
        if config.corpus is None:
            return cls(loaded, _random_texts(config, loaded, window), lengths=inside)
        hint = "Give a longer corpus, or none: random tokens are read then."
        return cls(loaded, held_out_texts(config, loaded, window, hint=hint), lengths=inside)

    def fingerprint(self) -> str:
        """Return the hash of all texts."""
        return texts_sha256(self._texts)

    def steps(self, contender: Contender, known: Collection[Key]) -> Iterator[Step[Retention]]:
        """Yield one text at one length, in both servings, at a time."""
        if self._state() != self._untouched:
            logger.warning(
                "the model must be as it was loaded before retention is measured, and it computes something else: an "
                "earlier measurement left it changed, and no figure of this evaluation holds"
            )
        left = [  # a text's two rows are stored together
            (length, text)
            for length, text in self._places
            if (contender.name, "switched", length, text.id) not in known
        ]
        yield Step([], "", len(self._places) - len(left))
        for length, text in left:
            yield Step([], f"{TASK}, {length} tokens", 0)
            yield Step(self._rows(contender, length, text), "", 1)

    def tables(self, rows: pd.DataFrame, contenders: Sequence[Contender]) -> list[Table]:
        """Return one table: a row for each contender, serving and length."""
        found = retained(rows).sort_values("length")
        numbers = ("tokens", "largest difference", "mean KL, nats", "same top token, %")
        table = new_table("Retention inside the original window", ("factors", "serving"), numbers)
        for contender in contenders:
            for serving in ("switched", "pinned"):
                own = found[(found["contender"] == contender.name) & (found["serving"] == serving)]
                for _, row in own.iterrows():
                    table.add_row(contender.name, serving, f"{row['length']}", *_cells(row))
        table.caption = (
            "Logits beside the original model's. switched: up to the original window as it was loaded, or with the "
            "factors' short ones, and the long ones beyond it. pinned: the long ones at every length. "
            "KL(original || served), mean over positions."
        )
        return [table]

    def _state(self) -> str:
        length, text = self._places[0]
        return hidden_sha256(self._loaded, text.token_ids[:length])

    def _rows(self, contender: Contender, length: int, text: HeldOutText) -> list[Retention]:
        begun = perf_counter()
        with enough_memory(f"a text of {self._loaded.geometry.original_length} tokens"):
            measured = retention(self._loaded, text.token_ids[:length], contender.factors)
        seconds = (perf_counter() - begun) / len(measured)
        if contender.factors.short is None and measured.switched.largest_difference != 0.0:
            logger.warning(
                "%s, %s at %d tokens: after the switch back logits must be the original model's, bit for bit, and "
                "differ by up to %g: what is measured inside the window is not the original model",
                contender.name,
                text.id,
                length,
                measured.switched.largest_difference,
            )
        return [_row(contender, serving, length, text, moved, seconds) for serving, moved in measured._asdict().items()]


def _row(contender: Contender, serving: str, length: int, text: HeldOutText, moved: Moved, seconds: float) -> Retention:
    return Retention(
        contender=contender.name,
        candidate=candidate_key(contender.factors),
        serving=serving,
        length=length,
        text=text.id,
        largest_difference=finite(moved.largest_difference),
        sum_divergence=finite(moved.sum_divergence),
        num_same_top=moved.num_same_top,
        num_positions=moved.num_positions,
        seconds=seconds,
    )


def _random_texts(config: EvaluationConfig, loaded: LoadedModel, num_tokens: int) -> list[HeldOutText]:
    """Return texts of random tokens of the vocabulary, after what the tokenizer puts before every text."""
    rng = np.random.default_rng([config.seed, zlib.crc32(b"random texts")])
    special = set(cast(Tokenizer, loaded.tokenizer).all_special_ids)
    size: int = loaded.model.config.get_text_config().vocab_size
    known = loaded.tokenizer.get_vocab().values()
    plain = np.array(sorted({number for number in known if number < size} - special), dtype=np.int32)
    begun: list[int] = loaded.tokenizer("a", add_special_tokens=True)["input_ids"]
    begin = list(takewhile(special.__contains__, begun))[:num_tokens]
    texts = []
    for number in range(config.num_texts):
        drawn = rng.choice(plain, num_tokens - len(begin))
        texts.append(HeldOutText(f"random-{number}", np.array([*begin, *drawn], dtype=np.int32)))
    return texts


def _cells(row: "pd.Series[float]") -> list[str]:
    top = f"{100 * row['same_top']:.2f}"
    if row["largest_difference"] == 0.0:
        return [EXACT, EXACT, top]
    numbers = (row["largest_difference"], row["mean_divergence"])
    return [*(number_text(number, digits=3) for number in numbers), top]
