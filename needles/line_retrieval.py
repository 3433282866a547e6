"""LongChat's line retrieval: the number of one line among many."""

import math
from collections.abc import Callable, Sequence
from hashlib import sha256
from typing import NamedTuple

import numpy as np

from needles.frame import build_frame
from needles.sample import Sample, check_count
from needles.tokenizer import Tokenizer, decode, encode
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS, NOUNS

TASK = "line_retrieval"
NUM_GENERATED = 100
"""Tokens that may be generated for a line's number; LongChat's."""
FIRST_ASKED, LAST_NUMBER = 10_000, 50_000
"""Numbers are 1 to 50,000, as LongChat's. The one asked for has five digits, so that no other can contain it."""

_TASK_TEXT = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains "
    "a '<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its "
    "corresponding <REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding "
    "<REGISTER_CONTENT> of a certain line index. Now the record start:\n\n"
)
_LINE = "line {index}: REGISTER_CONTENT is <{number}>\n"
_QUESTION = "\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {index}? I need the number."
_ANSWER_START = "Line <{index}>: <REGISTER_CONTENT> is"

_NUM_TRIALS = 16  # lines that tell how many tokens one has
_DRAWS = 200  # lines to choose from when a prompt is brought to its length
_MAX_PLACES = 64  # lines that may be exchanged for them
_MAX_REPAIRS = 24
_NEVER = 1_000_000_000  # tokens of a line that is in use
_NOUNS = NOUNS + DISTRACTOR_NOUNS


class _Line(NamedTuple):
    name: str
    number: int

    @property
    def text(self) -> str:
        return _LINE.format(index=self.name, number=self.number)


class _Record(NamedTuple):
    lines: list[_Line]
    asked: int


def build_line_samples(
    tokenizer: Tokenizer,
    *,
    num_samples: int,
    length: int,
    rng: np.random.Generator,
    is_chat: bool = False,
    num_generated: int = NUM_GENERATED,
) -> list[Sample]:
    """Return records of lines with a number in each, and the question for one of them.

    As many lines as fit are drawn, and a few of them drawn again until the prompt has its exact length. Where no draw
    gives it, as with a tokenizer for which all lines are equally long, the sample has the most lines that fit, and so
    up to a line's tokens less than the `length` asked for. Its id says how many lines.

    Args:
        tokenizer: The model's.
        num_samples: How many; at least 1.
        length: Tokens of prompt and generated text together, at most.
        rng: Draws lines and which one is asked for; the same state gives the same samples.
        is_chat: Whether to ask in the model's chat template. For a base model the answer is begun, in LongChat's words
            for such.
        num_generated: Tokens that may be generated for each.

    Returns:
        Samples of the task `line_retrieval`; depth is the share of the lines before the one asked for.

    Raises:
        ValueError: `num_samples` or `num_generated` is below 1, `length` is too short for a line, the tokenizer has no
            chat template or cannot encode a line.

    Source: LongChat, DachengLi1/LongChat, longeval/utils.py, line indices LRT-NL; adjectives and nouns are our own.
    """
    check_count("num_samples", num_samples)
    check_count("num_generated", num_generated)
    samples = []
    for number in range(num_samples):
        record, ids = _fitted_lines(tokenizer, length - num_generated, rng, is_chat=is_chat)
        token_ids = np.array(ids, dtype=np.int32)
        digest = sha256(token_ids.astype("<i4").tobytes()).hexdigest()
        samples.append(
            Sample(
                task=TASK,
                id=f"{TASK}-{length}-{number}-{len(record.lines)}-lines-{digest[:12]}",
                token_ids=token_ids,
                answers=(str(record.lines[record.asked].number),),
                num_generated=num_generated,
                length=length,
                depth=record.asked / len(record.lines),
            )
        )
    return samples


def _fitted_lines(
    tokenizer: Tokenizer, num_tokens: int, rng: np.random.Generator, *, is_chat: bool
) -> tuple[_Record, list[int]]:
    """Return a record and the ids of its prompt: so many tokens, or with the most lines that fit."""
    # More lines than fit, from the shortest of a few
    fewest = min(_num_tokens(tokenizer, line) for line in _draw_lines(rng, _NUM_TRIALS, num_words=2))
    num = max(num_tokens, 0) // fewest + 2
    num_words = 2 if 2 * num < _num_indices(2) else 3
    asked, *others = _draw_lines(rng, num, num_words=num_words)
    asked = asked._replace(number=int(rng.integers(FIRST_ASKED, LAST_NUMBER, endpoint=True)))
    others = [line for line in others if line.number != asked.number]
    frame = build_frame(tokenizer, is_chat=is_chat)
    question = _QUESTION.format(index=asked.name)
    answer_start = "" if is_chat else f"\n{_ANSWER_START.format(index=asked.name)}"
    place = float(rng.random())

    def record(num_others: int) -> _Record:
        before = round(place * num_others)
        return _Record([*others[:before], asked, *others[before:num_others]], before)

    def write(record: _Record) -> list[int]:
        lines = "".join(line.text for line in record.lines)
        return frame.encode(tokenizer, f"{_TASK_TEXT}{lines}{question}", answer_start)

    low, high = 0, len(others)
    ids = write(record(0))
    if len(ids) > num_tokens:
        raise ValueError(
            f"length must leave at least {len(ids)} tokens for the prompt and one line, got {num_tokens}. "
            "Ask for longer prompts."
        )
    while high - low > 1:  # the most lines that fit
        middle = (low + high) // 2
        low, high = (middle, high) if len(write(record(middle))) <= num_tokens else (low, middle)
    taken = {line.name for line in (asked, *others)}
    drawn = _draw_lines(rng, _DRAWS, num_words=num_words)
    pool = [line for line in drawn if line.name not in taken and line.number != asked.number]
    for num_others in (low, min(low + 1, len(others))):
        found = record(num_others)
        ids = _repaired(tokenizer, found, pool, num_tokens, write, rng)
        if len(ids) == num_tokens:
            break
    else:
        found = record(low)
        ids = write(found)
    _check_text(tokenizer, ids, asked.text)
    return found, ids


def _repaired(
    tokenizer: Tokenizer,
    record: _Record,
    pool: Sequence[_Line],
    num_tokens: int,
    write: Callable[[_Record], list[int]],
    rng: np.random.Generator,
) -> list[int]:
    """Exchange lines of a record, but not the one asked for, until its prompt has its length; return its ids.

    A line alone has the tokens that it has among others, but for what a tokenizer merges across lines; so it takes a
    few attempts, and the ids may still be too few or too many.
    """
    ids = write(record)
    others = [place for place in range(len(record.lines)) if place != record.asked]
    places = rng.permutation(others)[:_MAX_PLACES].tolist()
    counts = np.array([_num_tokens(tokenizer, record.lines[place]) for place in places])
    pool_counts = np.array([_num_tokens(tokenizer, line) for line in pool])
    for _ in range(min(_MAX_REPAIRS, len(places), len(pool))):
        missing = num_tokens - len(ids)
        if missing == 0:
            break
        errors = np.abs(pool_counts[None, :] - counts[:, None] - missing)
        place, chosen = np.unravel_index(errors.argmin(), errors.shape)
        if errors[place, chosen] >= abs(missing):  # all lines are equally long
            break
        record.lines[places[place]] = pool[chosen]
        counts[place], pool_counts[chosen] = pool_counts[chosen], _NEVER
        ids = write(record)
    return ids


def _num_tokens(tokenizer: Tokenizer, line: _Line) -> int:
    return len(encode(tokenizer, line.text, add_special_tokens=False))


def _num_indices(num_words: int) -> int:
    return math.prod([len(ADJECTIVES), *[len(_NOUNS)] * (num_words - 1)])


def _draw_lines(rng: np.random.Generator, num: int, *, num_words: int) -> list[_Line]:
    """Return lines with distinct indices of an adjective and nouns."""
    lines = []
    codes = rng.choice(_num_indices(num_words), num, replace=False)
    numbers = rng.integers(1, LAST_NUMBER, num, endpoint=True)
    for code, number in zip(codes.tolist(), numbers.tolist(), strict=True):
        rest, first = divmod(code, len(ADJECTIVES))
        words = [ADJECTIVES[first]]
        for _ in range(num_words - 1):
            rest, noun = divmod(rest, len(_NOUNS))
            words.append(_NOUNS[noun])
        lines.append(_Line("-".join(words), number))
    return lines


def _check_text(tokenizer: Tokenizer, token_ids: list[int], text: str) -> None:
    if "".join(text.split()) not in "".join(decode(tokenizer, token_ids).split()):
        raise ValueError(
            f"the tokenizer must be able to encode {text.strip()!r}, got a prompt without it back. "
            "Use a model whose tokenizer covers it."
        )
