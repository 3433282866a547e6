"""Writes documents to fine-tune the reference model on: `python -m workers.reference.documents --out F.jsonl`.

They are of kinds that it was trained on, needle documents and book text, as long as its window and as long as the
window that it is to reach. Their text is that of the corpus's search split, so that a search's validation and held-out
documents stay unseen.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from needles.corpus import read_split
from needles.generated import noise_records
from needles.haystack import hide
from needles.needle import Needle, draw_needles
from needles.prompts import RULER_BASE
from results.atomic_file import write_text
from workers.reference.train import MODEL_FOLDER, WINDOW

CORPUS = Path(__file__).parent / "tom_sawyer.txt"
TARGET_LENGTH = 4 * WINDOW
"""Tokens of the long documents, the two special ones that packing puts round them included."""
Kind = Literal["needle", "text"]
KINDS: tuple[Kind, ...] = ("needle", "text", "needle", "needle")
"""Kinds of documents, in turn. Copies are left out: where they repeat text, the model takes all text for one, and loses
0.2 nats a token on text that repeats nothing."""

_MOST_CHARACTERS = 64_000_000  # read of a corpus
_NUM_SPECIAL = 2  # <s> and </s>
_NUM_FITTINGS = 4
_NUM_DRAWS = 20  # of needles that hardly fit
_NEEDLES_PER_DRAW = 2000
_TOKENS_PER_NEEDLE = 112  # a needle's sentence, question and answer have about 65
_NOISE_SHARE = 0.5
_NUM_NOISE_RECORDS = 20

Write = Callable[[int], str]
"""Returns a document's text for a number of tokens that it is to have, more or less; other calls, other lengths."""


class Document(NamedTuple):
    """A line of the file."""

    kind: Kind
    """What it is made for."""
    text: str
    """Without special tokens."""
    num_tokens: int
    """Special tokens included."""


def main() -> None:
    """Write the file and say what is in it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines to write, one document each")
    parser.add_argument("--corpus", default=str(CORPUS), help="file or folder of text; its search split is used")
    parser.add_argument("--model", default=str(MODEL_FOLDER), help="folder of the reference model")
    parser.add_argument("--num-short", type=int, default=1000, help="documents of the original window")
    parser.add_argument("--num-long", type=int, default=250, help="documents of the target window")
    parser.add_argument("--target-length", type=int, default=TARGET_LENGTH, help="tokens of a long document")
    parser.add_argument("--seed", type=int, default=0, help="the one seed")
    options = parser.parse_args()
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(options.model)
    text = read_split(options.corpus, "search", num_characters=_MOST_CHARACTERS).text
    drawn = Documents(tokenizer, text, np.random.default_rng(options.seed))
    lengths = np.repeat([WINDOW, options.target_length], [options.num_short, options.num_long])
    documents = [drawn.draw(KINDS[number % len(KINDS)], int(length)) for number, length in enumerate(lengths)]
    lines = (json.dumps(document._asdict(), ensure_ascii=False) + "\n" for document in documents)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(options.out, "".join(lines))
    num_tokens = sum(document.num_tokens for document in documents)
    sys.stdout.write(f"{len(documents)} documents, {num_tokens} tokens: {options.out}\n")


class Documents:
    """Draws documents; everything random comes from its generator.

    Args:
        tokenizer: The reference model's.
        text: Where haystacks and book text come from.
        rng: The generator.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, text: str, rng: np.random.Generator) -> None:
        self._tokenizer = tokenizer
        self._rng = rng
        self._text = text
        # A stretch of so many tokens is then cut without encoding it
        self._starts = self._token_starts(text)
        self._noise_text = "\n".join(islice(noise_records(), _NUM_NOISE_RECORDS))
        self._noise_starts = self._token_starts(self._noise_text)
        self._needles = self._endless_needles()

    def draw(self, kind: Kind, length: int) -> Document:
        """Return a document of some length, or of a few tokens less where no cut of the text gives it.

        Args:
            kind: What it is made for.
            length: Tokens, special ones included.

        Raises:
            ValueError: The text is too short for it, or it for what it is made for.
        """
        num_tokens = length - _NUM_SPECIAL
        for told, starts in (("search split of the corpus", self._starts), ("noise", self._noise_starts)):
            if num_tokens >= len(starts) - 1:
                raise ValueError(
                    f"the {told} must have more than {num_tokens} tokens, got {len(starts)}. Give a longer corpus, or "
                    "draw shorter documents."
                )
        for _ in range(_NUM_DRAWS):
            write = self._needle(num_tokens) if kind == "needle" else self._stretch()
            found, text = self._fitted(write, num_tokens)
            if found:
                return Document(kind, text, found + _NUM_SPECIAL)
        raise ValueError(
            f"a document of kind {kind} must have room for what it is made of, got {length} tokens. Make it longer."
        )

    def _fitted(self, write: Write, num_tokens: int) -> tuple[int, str]:
        """Return the longest text of a few attempts that is no longer than wanted, with its tokens; 0 where none is."""
        wanted, found, text = num_tokens, 0, ""
        for _ in range(_NUM_FITTINGS):
            tried = write(wanted)
            got = len(self._token_starts(tried))
            if found < got <= num_tokens:
                found, text = got, tried
            if got == num_tokens:
                break
            wanted += num_tokens - got
        return found, text

    def _needle(self, num_tokens: int) -> Write:
        """Hide needles in book text or noise, and ask for all of them."""
        num_needles = int(self._rng.integers(1, max(1, num_tokens // _TOKENS_PER_NEEDLE) + 1))
        needles = [next(self._needles) for _ in range(num_needles)]
        depths = self._rng.random(num_needles).tolist()
        stretch = self._noise() if self._rng.random() < _NOISE_SHARE else self._stretch()
        sentences = " ".join(needle.sentence() for needle in needles)
        num_around = len(self._token_starts(RULER_BASE.write(sentences, *needles)))

        def write(num_tokens: int) -> str:
            haystack = stretch(max(1, num_tokens - num_around))
            for needle, depth in zip(needles, depths, strict=True):
                haystack = hide(haystack, needle.sentence(), depth)
            return RULER_BASE.write(haystack, *needles)

        return write

    def _noise(self) -> Write:
        starts = self._noise_starts
        place = float(self._rng.random())

        def write(num_tokens: int) -> str:
            first = int(place * (len(starts) - num_tokens - 1))
            return self._noise_text[starts[first] : starts[first + num_tokens]]

        return write

    def _stretch(self) -> Write:
        place = float(self._rng.random())

        def write(num_tokens: int) -> str:
            first = int(place * (len(self._starts) - num_tokens))
            end = first + num_tokens
            return self._text[self._starts[first] : self._starts[end] if end < len(self._starts) else None]

        return write

    def _token_starts(self, text: str) -> npt.NDArray[np.int64]:
        """Return where each token of a text begins, characters."""
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        return np.array([start for start, _ in encoded["offset_mapping"]], dtype=np.int64)

    def _endless_needles(self) -> Iterator[Needle]:
        while True:
            yield from draw_needles(self._rng, _NEEDLES_PER_DRAW)


if __name__ == "__main__":
    main()
