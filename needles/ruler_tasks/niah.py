"""RULER's eight needle-in-a-haystack tasks.

Source: NVIDIA/RULER, scripts/data/synthetic/niah.py and constants.py, scripts/synthetic.yaml; arXiv:2404.06654,
appendix B.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple
from uuid import UUID

import numpy as np

from needles.needle import FIRST_VALUE, LAST_VALUE
from needles.ruler_tasks.haystack import DEPTHS, Essays, hide_between_lines, hide_in_essay, noise_lines
from needles.ruler_tasks.puzzle import Message, Puzzle
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS, NOUNS

Haystack = Literal["noise", "essay", "needle"]
Kind = Literal["words", "numbers", "uuids"]

_CHARACTERS_PER_TOKEN = 32
_TOKENS_PER_LINE = 8  # a line that looks like a needle has more

_NEEDLE = "One of the special magic {kind} for {key} is: {value}."
_ONE = (
    "A special magic {kind} is hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What is the special magic {kind} for {query} mentioned in the provided text?"
)
_ONE_PREFIX = " The special magic {kind} for {query} mentioned in the provided text is"
_SEVERAL = (
    "Some special magic {kind} are hidden within the following text. Make sure to memorize it. "
    "I will quiz you about the {kind} afterwards.\n{context}\n"
    "What are all the special magic {kind} for {query} mentioned in the provided text?"
)
_SEVERAL_PREFIX = " The special magic {kind} for {query} mentioned in the provided text are"

_KEYS = tuple(f"{adjective}-{noun}" for adjective in ADJECTIVES for noun in (*NOUNS, *DISTRACTOR_NOUNS))


class Retrieval(NamedTuple):
    """What one of the eight tasks hides and asks for."""

    haystack: Haystack

    keys: Kind = "words"
    """adjective-noun, or a version 4 UUID."""

    values: Kind = "numbers"
    """Seven digits, or a version 4 UUID."""

    num_keys: int = 1
    """Keys hidden."""

    num_values: int = 1
    """Values, each with a sentence of its own, for every key."""

    num_queries: int = 1
    """Keys asked for."""


RETRIEVALS: dict[str, Retrieval] = {
    "niah_single_1": Retrieval("noise"),
    "niah_single_2": Retrieval("essay"),
    "niah_single_3": Retrieval("essay", values="uuids"),
    "niah_multikey_1": Retrieval("essay", num_keys=4),
    "niah_multikey_2": Retrieval("needle"),
    "niah_multikey_3": Retrieval("needle", keys="uuids", values="uuids"),
    "niah_multivalue": Retrieval("essay", num_values=4),
    "niah_multiquery": Retrieval("essay", num_keys=4, num_queries=4),
}


def retrieval_puzzle(task: Retrieval, rng: np.random.Generator, *, length: int, essays: Essays | None) -> Puzzle:
    """Return one sample of a task; its size is the haystack's characters.

    Keys and values of one sample all differ, from those of lines that look like needles too; in RULER such a line may
    repeat the key that is asked for.

    Args:
        task: What to hide.
        rng: Draws everything.
        length: Tokens of the sample, for how much haystack may be needed.
        essays: The corpus; needed where the haystack is an essay.
    """
    keys = _draw(task.keys, rng, task.num_keys)
    values = _draw(task.values, rng, task.num_keys * task.num_values)
    by_key = {key: values[number :: task.num_keys] for number, key in enumerate(keys)}
    pairs = [(key, value) for key, values_of_key in by_key.items() for value in values_of_key]
    queries = [keys[index] for index in rng.permutation(task.num_keys)[: task.num_queries]]
    answers = tuple(value for query in queries for value in by_key[query])
    hidden = [pairs[index] for index in rng.permutation(len(pairs))]
    sentences = [_sentence(task.values, key, value) for key, value in hidden]
    asked = [index for index, (key, _) in enumerate(hidden) if key in queries]
    fill = _filler(task, rng, sentences, taken=(*keys, *values), length=length, essays=essays)
    template, prefix = (_ONE, _ONE_PREFIX) if len(answers) == 1 else (_SEVERAL, _SEVERAL_PREFIX)
    words = {"kind": task.values.removesuffix("s") if len(answers) == 1 else task.values, "query": _joined(queries)}

    def write(size: int, ending: str) -> Message:
        context, depths = fill.hide(size)
        text = template.format(context=context + ending, **words)
        return Message(text, depths[asked[0]] if len(asked) == 1 else None)

    return Puzzle(
        write=write,
        smallest=fill.smallest,
        largest=fill.largest,
        answer_prefix=prefix.format(**words),
        answers=answers,
        evidence=tuple(sentences),
        material=fill.material,
    )


class _Filler(NamedTuple):
    hide: Callable[[int], tuple[str, list[float]]]
    smallest: int
    largest: int
    material: str


def _filler(
    task: Retrieval,
    rng: np.random.Generator,
    sentences: Sequence[str],
    *,
    taken: Sequence[str],
    length: int,
    essays: Essays | None,
) -> _Filler:
    if task.haystack == "essay":
        assert essays
        place = rng.random()
        essay = essays.from_place(place, num_characters=_CHARACTERS_PER_TOKEN * length)
        depths = rng.choice(DEPTHS, size=len(sentences), replace=False).tolist()
        return _Filler(lambda size: hide_in_essay(essay[:size], sentences, depths), 0, len(essay), essays.name)
    if task.haystack == "noise":
        lines, material = noise_lines(_CHARACTERS_PER_TOKEN * length), "the noise"
    else:
        lines, material = _lines_like_needles(task, rng, length // _TOKENS_PER_LINE + 1, taken), "the lines of needles"
    seed = int(rng.integers(2**32))

    def hide(size: int) -> tuple[str, list[float]]:
        # The same size must give the same text however often it is tried
        return hide_between_lines(lines[:size], sentences, np.random.default_rng((seed, size)))

    return _Filler(hide, lines.index("\n"), len(lines), material)


def _lines_like_needles(task: Retrieval, rng: np.random.Generator, num: int, taken: Sequence[str]) -> str:
    keys = _draw_again(task.keys, rng, num, taken)
    values = _draw_again(task.values, rng, num, taken)
    return "\n".join(_sentence(task.values, key, value) for key, value in zip(keys, values, strict=True)) + "\n"


def _draw(kind: Kind, rng: np.random.Generator, num: int) -> list[str]:
    """Return different keys or values."""
    drawn: dict[str, None] = {}  # a set that keeps the order of drawing
    while len(drawn) < num:
        drawn.update(dict.fromkeys(_random_strings(kind, rng, num - len(drawn))))
    return list(drawn)


def _draw_again(kind: Kind, rng: np.random.Generator, num: int, taken: Sequence[str]) -> list[str]:
    """Return keys or values, some perhaps twice, but none of those taken."""
    drawn: list[str] = []
    while len(drawn) < num:
        drawn += [text for text in _random_strings(kind, rng, num - len(drawn)) if text not in taken]
    return drawn


def _random_strings(kind: Kind, rng: np.random.Generator, num: int) -> list[str]:
    if kind == "words":
        return [_KEYS[index] for index in rng.integers(len(_KEYS), size=num)]
    if kind == "numbers":
        return [str(number) for number in rng.integers(FIRST_VALUE, LAST_VALUE, size=num, endpoint=True)]
    drawn = rng.bytes(16 * num)
    return [str(UUID(bytes=drawn[start : start + 16], version=4)) for start in range(0, 16 * num, 16)]


def _sentence(kind: Kind, key: str, value: str) -> str:
    return _NEEDLE.format(kind=kind, key=key, value=value)


def _joined(queries: Sequence[str]) -> str:
    return f"{', '.join(queries[:-1])}, and {queries[-1]}" if len(queries) > 1 else queries[0]
