"""RULER's variable tracking: one chain of four hops in noise, after a solved example.

Source: NVIDIA/RULER, scripts/data/synthetic/variable_tracking.py and constants.py; arXiv:2404.06654, section 3.
"""

from collections.abc import Callable
from itertools import pairwise
from string import ascii_uppercase
from typing import NamedTuple

import numpy as np

from needles.generated import NOISE
from needles.ruler_tasks.haystack import hide_between_lines, noise_lines
from needles.ruler_tasks.puzzle import Message, Puzzle

_CHARACTERS_PER_TOKEN = 32
_NUM_HOPS = 4
_NUM_LETTERS = 5
_NUM_EXAMPLE_LETTERS = 3
_NUM_EXAMPLE_TOKENS = 500  # an example is as long as fits, but has a line of noise for each of its own
_FIRST_VALUE, _LAST_VALUE = 10_000, 99_998

_TEMPLATE = (
    "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n"
    "Question: Find all variables that are assigned the value {query} in the text above."
)
# "assgined" is RULER's own spelling, and was in the prompts that its published scores were measured with
_PREFIX = (
    " Answer: According to the chain(s) of variable assignment in the text above, {num_v} variables are assgined the "
    "value {query}, they are: "
)


class _Chain(NamedTuple):
    names: tuple[str, ...]
    value: str

    def lines(self) -> list[str]:
        hops = [f"VAR {name} = VAR {before} " for before, name in pairwise(self.names)]
        return [f"VAR {self.names[0]} = {self.value}", *hops]


def tracking_puzzle(rng: np.random.Generator, *, length: int, count_tokens: Callable[[str], int]) -> Puzzle:
    """Return one sample; its size is the characters of the noise.

    Args:
        rng: Draws names, values and places.
        length: Tokens of the sample, for how much noise may be needed.
        count_tokens: From a text to its number of tokens; the example is as long as 500 of them allow.
    """
    example_value, value = (
        str(number) for number in rng.choice(np.arange(_FIRST_VALUE, _LAST_VALUE + 1), size=2, replace=False)
    )
    example = _example(_Chain(_names(rng, _NUM_EXAMPLE_LETTERS), example_value), rng, count_tokens)
    chain = _Chain(_names(rng, _NUM_LETTERS), value)
    noise = noise_lines(_CHARACTERS_PER_TOKEN * length)
    seed = int(rng.integers(2**32))

    def write(size: int, ending: str) -> Message:
        context, _ = hide_between_lines(noise[:size], chain.lines(), np.random.default_rng((seed, size)))
        return Message(f"{example}\n\n{_TEMPLATE.format(context=context + ending, query=value)}")

    return Puzzle(
        write=write,
        smallest=_noise_size(len(chain.lines())),
        largest=len(noise),
        answer_prefix=_prefix(value),
        answers=chain.names,
        evidence=tuple(chain.lines()),
        material="the noise",
    )


def _example(chain: _Chain, rng: np.random.Generator, count_tokens: Callable[[str], int]) -> str:
    num_noises = len(chain.lines())
    text = _solved(chain, rng, num_noises)
    while count_tokens(longer := _solved(chain, rng, num_noises + 1)) <= _NUM_EXAMPLE_TOKENS:
        text, num_noises = longer, num_noises + 1
    return text


def _solved(chain: _Chain, rng: np.random.Generator, num_noises: int) -> str:
    context, _ = hide_between_lines("\n".join([NOISE] * num_noises), chain.lines(), rng)
    return f"{_TEMPLATE.format(context=context, query=chain.value)}{_prefix(chain.value)} {' '.join(chain.names)}"


def _prefix(value: str) -> str:
    return _PREFIX.format(num_v=_NUM_HOPS + 1, query=value)


def _names(rng: np.random.Generator, num_letters: int) -> tuple[str, ...]:
    names: dict[str, None] = {}
    while len(names) < _NUM_HOPS + 1:
        names["".join(rng.choice(list(ascii_uppercase), size=num_letters))] = None
    return tuple(names)


def _noise_size(num_lines: int) -> int:
    return num_lines * (len(NOISE) + 1) - 1
