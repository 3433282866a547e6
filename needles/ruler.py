"""RULER: thirteen tasks at an exact length, how they are scored, and what is said of a model at all lengths.

Source: RULER, arXiv:2404.06654, and NVIDIA/RULER.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from math import fsum, isnan, nan
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from needles.corpus import NOISE, Split
from needles.frame import build_frame
from needles.metrics import string_match_all, string_match_part
from needles.ruler_tasks.building import Builder
from needles.ruler_tasks.common_words import WordPool, common_words_puzzle
from needles.ruler_tasks.frequent_words import frequent_words_puzzle
from needles.ruler_tasks.haystack import Essays
from needles.ruler_tasks.niah import RETRIEVALS, retrieval_puzzle
from needles.ruler_tasks.puzzle import Puzzle
from needles.ruler_tasks.question_answering import answering_puzzle, read_hotpotqa, read_squad
from needles.ruler_tasks.variable_tracking import tracking_puzzle
from needles.sample import Sample, check_count
from needles.tokenizer import Tokenizer, encode

LENGTHS = (4096, 8192, 16384, 32768, 65536, 131072)
"""Lengths of RULER's own table, tokens."""

NUM_SAMPLES = 500
"""Samples of each task and length in RULER's own table."""

THRESHOLD = 85.6
"""What Llama2-7B scores at 4,096 tokens, percent: what a model must reach at a length that counts as effective."""


class RulerTask(NamedTuple):
    """What is known of a task without building it."""

    num_generated: int
    """Tokens that may be generated."""

    metric: Callable[[str, Sequence[str]], float]
    """From a generated text and the answers to a score, 0..1."""

    needs: str | None = None
    """Whose file it needs, "squad" or "hotpotqa"."""


TASKS: Mapping[str, RulerTask] = MappingProxyType(
    {
        **{name: RulerTask(128, string_match_all) for name in RETRIEVALS},
        "vt": RulerTask(30, string_match_all),
        "cwe": RulerTask(120, string_match_all),
        "fwe": RulerTask(50, string_match_all),
        "qa_1": RulerTask(32, string_match_part, "squad"),
        "qa_2": RulerTask(32, string_match_part, "hotpotqa"),
    }
)
"""The thirteen, in the order of RULER's configuration."""


class AvailableTasks(NamedTuple):
    """What can be measured with the files at hand."""

    names: tuple[str, ...]
    """Tasks that can be built."""

    left_out: Mapping[str, str]
    """The others, each with the reason."""


class TaskAverage(NamedTuple):
    """A mean over tasks, and over which."""

    score: float
    """Mean of the tasks measured; NaN without any."""

    measured: tuple[str, ...]
    """Tasks that count, in RULER's order."""

    left_out: tuple[str, ...]
    """Tasks that do not, because they were not measured or gave NaN."""


class LengthAverages(NamedTuple):
    """Means over lengths, in the unit of the scores."""

    mean: float
    """Every length alike."""

    increasing: float
    """RULER's wAvg. (inc): weights 1, 2, 3, .. from the shortest length on."""

    decreasing: float
    """RULER's wAvg. (dec): weights .., 3, 2, 1 down to the longest."""


def available_tasks(squad: str | Path | None = None, hotpotqa: str | Path | None = None) -> AvailableTasks:
    """Return which tasks can be built with these files, and why the others cannot.

    Args:
        squad: A SQuAD file, or none.
        hotpotqa: A HotpotQA file, or none.

    Raises:
        ValueError: a file is named that does not exist.
    """
    files = {"squad": squad, "hotpotqa": hotpotqa}
    for kind, path in files.items():
        if path is not None and not Path(path).is_file():
            raise ValueError(f"{kind} must be a file, got {path}, which is none. Check the path, or leave it out.")
    left_out = {
        name: f"needs a {task.needs} file, and none was given"
        for name, task in TASKS.items()
        if task.needs and files[task.needs] is None
    }
    return AvailableTasks(tuple(name for name in TASKS if name not in left_out), left_out)


def build_samples(
    task: str,
    tokenizer: Tokenizer,
    *,
    num_samples: int,
    length: int,
    rng: np.random.Generator,
    corpus: str | Path = NOISE,
    split: Split = "heldout",
    column: str = "text",
    is_chat: bool = False,
    squad: str | Path | None = None,
    hotpotqa: str | Path | None = None,
) -> list[Sample]:
    """Return samples of one of RULER's tasks, each of exactly `length` tokens with those to generate.

    Wording, needles, answers and budgets are RULER's. What differs: the length is exact, by a haystack cut off within
    a sentence or by a few full stops at its end; essays are the corpus; keys are of our own words, and words to
    count are the corpus's and our own; no line of a haystack repeats a key that is asked for.

    Args:
        task: One of `TASKS`.
        tokenizer: The model's.
        num_samples: How many; the first ones of a larger number are the same.
        length: Tokens of each prompt and its answer.
        rng: Draws everything; the same state gives the same samples.
        corpus: Where essays and words come from; see `corpus.read_texts`.
        split: The part of the corpus to use.
        column: Field or column of the corpus that holds the text.
        is_chat: Whether to use the model's own chat template.
        squad: A SQuAD file, for qa_1.
        hotpotqa: A HotpotQA file, for qa_2.

    Raises:
        ValueError: the task is unknown or its file missing, `num_samples` is below 1 or above the questions of the
            file, `length` is too short for the task, the corpus cannot be read or is too small, or the tokenizer
            cannot encode what is asked for.
    """
    if task not in TASKS:
        raise ValueError(f"the RULER task must be one of {', '.join(TASKS)}, got {task!r}. Name one of them.")
    check_count("num_samples", num_samples)
    frame = build_frame(tokenizer, is_chat=is_chat)
    builder = Builder(task, tokenizer, frame, num_generated=TASKS[task].num_generated, length=length)
    generators = [np.random.default_rng(seed) for seed in rng.integers(2**63, size=num_samples)]

    def read_essays() -> Essays:
        return Essays.read(corpus, split=split, length=length, column=column)

    if task in RETRIEVALS:
        puzzles = _retrievals(task, generators, length=length, read_essays=read_essays)
    elif task == "vt":
        puzzles = _trackings(tokenizer, generators, length=length)
    elif task == "cwe":
        pool = WordPool.of(read_essays())
        puzzles = (common_words_puzzle(generator, length=length, pool=pool) for generator in generators)
    elif task == "fwe":
        puzzles = (frequent_words_puzzle(generator, length=length) for generator in generators)
    else:
        puzzles = _answerings(task, generators, squad if task == "qa_1" else hotpotqa)
    return [builder.build(number, puzzle) for number, puzzle in enumerate(puzzles)]


def average_tasks(scores: Mapping[str, float]) -> TaskAverage:
    """Return the mean over the tasks that were measured at one length, and which were not.

    Two averages over different tasks are no comparison; look at `left_out`.

    Args:
        scores: From a task's name to its mean score; NaN where it could not be measured.

    Raises:
        ValueError: a name is not one of RULER's tasks.
    """
    unknown = [name for name in scores if name not in TASKS]
    if unknown:
        raise ValueError(f"scores must be of RULER's tasks, got {', '.join(unknown)}. Leave out what is not RULER's.")
    measured = tuple(name for name in TASKS if not isnan(scores.get(name, nan)))
    mean = fsum(scores[name] for name in measured) / len(measured) if measured else nan
    return TaskAverage(mean, measured, tuple(name for name in TASKS if name not in measured))


def average_lengths(scores: Mapping[int, float]) -> LengthAverages:
    """Return the mean over lengths and RULER's two weighted ones. A NaN among the scores makes all of them NaN.

    Weights follow the order of the lengths, not the lengths themselves.

    Args:
        scores: From a length, tokens, to the score at it.

    Raises:
        ValueError: there is no score.

    Source: RULER, section 4, "Model Ranking Criteria"; that weights are 1, 2, 3, .. is read off its table 3.
    """
    if not scores:
        raise ValueError("scores must be of one length or more, got none. Measure a length first.")
    values = [scores[length] for length in sorted(scores)]
    weights = range(1, len(values) + 1)
    return LengthAverages(
        mean=fsum(values) / len(values),
        increasing=_weighted(values, weights),
        decreasing=_weighted(values, weights[::-1]),
    )


def effective_length(scores: Mapping[int, float], *, threshold: float = THRESHOLD) -> int | None:
    """Return the largest length at which the score reaches the threshold, or None where there is none.

    As in RULER, a length that fails below one that passes does not matter. A score that equals the threshold passes,
    so that a model passes its own baseline.

    Args:
        scores: From a length, tokens, to the score at it, percent.
        threshold: Percent: RULER's, or the score of the user's own baseline, for example of the model before it was
            extended, in its own window.

    Source: RULER, section 4, "Effective Context Size".
    """
    return max((length for length, value in scores.items() if value >= threshold), default=None)


def _retrievals(
    task: str, generators: Sequence[np.random.Generator], *, length: int, read_essays: Callable[[], Essays]
) -> Iterator[Puzzle]:
    retrieval = RETRIEVALS[task]
    essays = read_essays() if retrieval.haystack == "essay" else None
    for generator in generators:
        yield retrieval_puzzle(retrieval, generator, length=length, essays=essays)


def _trackings(tokenizer: Tokenizer, generators: Sequence[np.random.Generator], *, length: int) -> Iterator[Puzzle]:
    def count_tokens(text: str) -> int:
        return len(encode(tokenizer, text, add_special_tokens=False))

    for generator in generators:
        yield tracking_puzzle(generator, length=length, count_tokens=count_tokens)


def _answerings(task: str, generators: Sequence[np.random.Generator], path: str | Path | None) -> Iterator[Puzzle]:
    kind = TASKS[task].needs
    if path is None:
        raise ValueError(f"{task} must have a {kind} file, got none. Give its path, or leave the task out.")
    questions = read_squad(path) if kind == "squad" else read_hotpotqa(path)
    if len(generators) > len(questions.questions):
        raise ValueError(
            f"num_samples of {task} must be at most {len(questions.questions)}, the questions in {path}, "
            f"got {len(generators)}. Ask for fewer samples."
        )
    for number, generator in enumerate(generators):
        yield answering_puzzle(number, generator, questions=questions)


def _weighted(values: Sequence[float], weights: Sequence[int]) -> float:
    return fsum(value * weight for value, weight in zip(values, weights, strict=True)) / sum(weights)
