"""The tasks that are answered: by name, which can be built, and their samples."""

import logging
import zlib
from collections.abc import Sequence
from types import MappingProxyType
from typing import cast

import numpy as np

from needles.corpus import NOISE, read_split
from needles.grid import TASK as GRID
from needles.grid import build_grid
from needles.line_retrieval import TASK as LINES
from needles.line_retrieval import build_line_samples
from needles.metrics import string_match_all, whole_word_match
from needles.passkey import TASK as PASSKEY
from needles.passkey import WINDOW_TASK, build_passkey_samples, build_window_samples
from needles.prompts import RULER_BASE, chat_prompt
from needles.ruler import TASKS, build_samples
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
    """Return the samples of every task and length; of tasks that nobody named, those that cannot be built are left out.

    Args:
        config: The evaluation.
        loaded: Its model.
        names: Tasks to build.

    Raises:
        ValueError: The corpus cannot be read, or a task that the user named cannot be built.
    """
    found: list[Sample] = []
    if config.corpus is not None:
        read_split(config.corpus, "heldout", num_characters=1)  # a corpus that cannot be read is no task's fault
    for name in names:
        try:
            found += _task_samples(config, loaded, name)
        except ValueError as error:
            if config.task_names:
                raise
            logger.warning("%s is left out, and is in no average: %s", name, error)
    return found


def metric_of(task: str) -> Metric:
    """Return the metric of a task.

    Args:
        task: One of `TASK_NAMES`.
    """
    return _METRICS[task]


def _task_samples(config: EvaluationConfig, loaded: LoadedModel, name: str) -> list[Sample]:
    if name == WINDOW_TASK:
        return _window_samples(config, loaded)
    return [sample for length in config.token_lengths for sample in _samples(config, loaded, name, length)]


def _window_samples(config: EvaluationConfig, loaded: LoadedModel) -> list[Sample]:
    """Return passkeys at Position Interpolation's lengths up to the longest one asked for."""
    longest = max(config.token_lengths)
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
