"""Generates answers to samples under one set of factors after the other, and scores them."""

from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from time import perf_counter
from typing import NamedTuple, TypeAlias

from needles.sample import Sample
from results.evaluation import SampleScore
from results.measurement import candidate_key
from rope.factors import RescaleFactors
from workers.decoding import Decoding
from workers.generate import Generation, generate
from workers.model import LoadedModel
from workers.scorer import failure_reason, is_out_of_memory

Metric: TypeAlias = Callable[[str, Sequence[str]], float]
"""Scores a generated text by the answers that belong in it, 0..1."""


class Contender(NamedTuple):
    """Factors under a name."""

    name: str
    """What tables call them."""
    factors: RescaleFactors
    """Used where a sequence is longer than the original window; inside it their short ones, or the model as it was."""


def score_samples(
    loaded: LoadedModel,
    contender: Contender,
    samples: Sequence[Sample],
    *,
    metric_of: Callable[[str], Metric],
    batch_size: int,
) -> Iterator[list[SampleScore]]:
    """Yield the scores of samples, batch by batch; greedy decoding with the window switch.

    Args:
        loaded: The model.
        contender: Factors to read and write with.
        samples: What to answer; samples of one task and length that stand side by side share batches.
        metric_of: The metric of a task, by its name.
        batch_size: Samples decoded together.

    Yields:
        One score per sample, in their order, a batch at a time.

    Raises:
        ValueError: As `generate` does.
        MemoryError: A batch does not fit.
    """
    candidate = candidate_key(contender.factors)
    for (task, num_generated, _), alike in groupby(
        samples, lambda sample: (sample.task, sample.num_generated, sample.length)
    ):
        rows = list(alike)
        decoding = Decoding(num_new_tokens=num_generated, batch_size=batch_size)
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            begun = perf_counter()
            generated = _generated(loaded, contender.factors, batch, decoding)
            seconds = (perf_counter() - begun) / len(batch)
            texts = [_text(loaded, generation.token_ids) for generation in generated]
            yield [
                SampleScore(
                    contender=contender.name,
                    candidate=candidate,
                    task=task,
                    sample=sample.id,
                    length=sample.length,
                    depth=sample.depth,
                    score=None if generation.ended == "not finite" else metric_of(task)(text, sample.answers),
                    text=text,
                    num_generated=len(generation.token_ids),
                    seconds=seconds,
                )
                for sample, text, generation in zip(batch, texts, generated, strict=True)
            ]


def _generated(
    loaded: LoadedModel, factors: RescaleFactors, batch: Sequence[Sample], decoding: Decoding
) -> list[Generation]:
    prompts = [sample.token_ids for sample in batch]
    original_length = loaded.geometry.original_length
    try:
        return generate(
            loaded.model,
            prompts,
            decoding,
            long=factors,
            short=factors.short,
            original_length=original_length,
            warns=False,
        )
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        raise MemoryError(
            f"memory must hold {len(batch)} samples of {batch[0].length} tokens at once, got: {failure_reason(error)}. "
            "Lower --batch-size or --lengths."
        ) from error


def _text(loaded: LoadedModel, token_ids: list[int]) -> str:
    text = loaded.tokenizer.decode(token_ids, skip_special_tokens=True)
    assert isinstance(text, str)
    return text
