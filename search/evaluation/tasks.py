"""The tasks that are answered: by name, which can be built, and their samples."""

import logging
import zlib
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import cast

import numpy as np

from needles.corpus import NOISE, read_split
from needles.frame import build_frame
from needles.grid import TASK as GRID
from needles.grid import build_grid
from needles.line_retrieval import TASK as LINES
from needles.line_retrieval import build_line_samples
from needles.metrics import string_match_all, whole_word_match
from needles.passkey import NUM_WINDOW_LENGTHS, WINDOW_TASK, build_passkey_samples, build_window_samples
from needles.passkey import TASK as PASSKEY
from needles.prompts import RULER_BASE, chat_prompt
from needles.ruler import TASKS, build_samples
from needles.ruler_tasks.question_answering import read_hotpotqa, read_squad
from needles.sample import Sample
from needles.tokenizer import Tokenizer
from needles.topic_retrieval import TASK as TOPICS
from needles.topic_retrieval import build_topic_samples
from search.evaluation.config import EvaluationConfig
from workers.evaluate import Metric
from workers.model import LoadedModel

TASK_NAMES = (*TASKS, GRID, PASSKEY, WINDOW_TASK, LINES, TOPICS)
"""Every task that is answered."""
ONLY_NAMED = (WINDOW_TASK,)
"""Tasks that run only where their user names them: this one has 32 lengths of its own."""

_METRICS: MappingProxyType[str, Metric] = MappingProxyType(
    {
        **{name: task.metric for name, task in TASKS.items()},
        GRID: string_match_all,  # RULER's own, for RULER's kind of needle
        **dict.fromkeys((PASSKEY, WINDOW_TASK, LINES, TOPICS), whole_word_match),
    }
)

logger = logging.getLogger(__name__)


def build_tasks(config: EvaluationConfig, loaded: LoadedModel, names: Sequence[str]) -> list[Sample]:
    """Return the samples of every task and length; of tasks that nobody named, what cannot be built is left out.

    A task that can be built at some of the lengths is kept there.

    Args:
        config: The evaluation.
        loaded: Its model.
        names: Tasks to build.

    Raises:
        ValueError: A file that the user gave cannot be read, prompts of a chat have no template, or a task that the
            user named cannot be built.
    """
    found: list[Sample] = []
    _check_given(config, loaded, names)
    for name in names:
        if name == WINDOW_TASK:
            found += _window_samples(config, loaded)
            continue
        faults = {}
        for length in config.token_lengths:
            try:
                found += _samples(config, loaded, name, length)
            except ValueError as error:
                if config.task_names:
                    raise
                faults[length] = error
        _warn(name, faults, is_everywhere=len(faults) == len(config.token_lengths))
    return found


def metric_of(task: str) -> Metric:
    """Return the metric of a task.

    Args:
        task: One of `TASK_NAMES`.
    """
    return _METRICS[task]


def _check_given(config: EvaluationConfig, loaded: LoadedModel, names: Sequence[str]) -> None:
    """Refuse what the user gave by name and no task can use, which is no task's fault."""
    if config.corpus is not None:
        read_split(config.corpus, "heldout", num_characters=1)
    if config.squad is not None and "qa_1" in names:
        read_squad(config.squad)
    if config.hotpotqa is not None and "qa_2" in names:
        read_hotpotqa(config.hotpotqa)
    if names:
        build_frame(cast(Tokenizer, loaded.tokenizer), is_chat=config.prompt == "chat")


def _warn(name: str, faults: Mapping[int, ValueError], *, is_everywhere: bool) -> None:
    """Say at which lengths a task is left out, and why."""
    if is_everywhere:
        logger.warning("%s is left out, and is in no average: %s", name, next(iter(faults.values())))
        return
    for length, error in faults.items():
        logger.warning("%s is left out at %d tokens, and is in no average: %s", name, length, error)


def _window_samples(config: EvaluationConfig, loaded: LoadedModel) -> list[Sample]:
    """Return passkeys at Position Interpolation's lengths up to the longest one asked for."""
    longest = max(config.token_lengths)
    if longest < NUM_WINDOW_LENGTHS:
        raise ValueError(
            f"--lengths must be at least {NUM_WINDOW_LENGTHS} tokens for {WINDOW_TASK}, which has as many lengths, got "
            f"{longest}. Raise it."
        )
    found = build_window_samples(
        cast(Tokenizer, loaded.tokenizer),
        num_samples=config.num_samples,
        target_length=longest,
        rng=_generator(config, WINDOW_TASK, longest),
        is_chat=config.prompt == "chat",
    )
    if found.left_out:
        lengths = ", ".join(map(str, found.left_out))
        logger.info("%s leaves out lengths that are too short for its prompt: %s", WINDOW_TASK, lengths)
    return found.samples


def _samples(config: EvaluationConfig, loaded: LoadedModel, name: str, length: int) -> list[Sample]:
    rng = _generator(config, name, length)
    tokenizer = cast(Tokenizer, loaded.tokenizer)
    num, is_chat = config.num_samples, config.prompt == "chat"
    corpus = NOISE if config.corpus is None else config.corpus
    if name == PASSKEY:
        return build_passkey_samples(tokenizer, num_samples=num, length=length, rng=rng, is_chat=is_chat)
    if name == LINES:
        return build_line_samples(tokenizer, num_samples=num, length=length, rng=rng, is_chat=is_chat)
    if name == TOPICS:
        return build_topic_samples(tokenizer, corpus, num_samples=num, length=length, rng=rng, is_chat=is_chat)
    if name == GRID:
        return build_grid(
            tokenizer,
            corpus,
            lengths=[length],
            depths=config.needle_depths,
            num_per_cell=num,
            rng=rng,
            prompt=chat_prompt(tokenizer) if is_chat else RULER_BASE,
        )
    return build_samples(
        name,
        tokenizer,
        num_samples=num,
        length=length,
        rng=rng,
        corpus=corpus,
        is_chat=is_chat,
        squad=config.squad,
        hotpotqa=config.hotpotqa,
    )


def _generator(config: EvaluationConfig, name: str, length: int) -> np.random.Generator:
    return np.random.default_rng([config.seed, zlib.crc32(name.encode()), length])
