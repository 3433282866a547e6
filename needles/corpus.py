"""Where haystacks come from: the records of a corpus, dealt out to splits that share no text."""

from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import chain, islice
from pathlib import Path
from typing import Literal, get_args

from needles.breaks import nearest_break
from needles.generated import distractor_records, noise_records
from needles.passage import Passage, Piece
from needles.readers import Text, read_json_lines, read_parquet, read_plain_text, read_saved_dataset

__all__ = ["DISTRACTORS", "NOISE", "SPLITS", "SUFFIXES", "Passage", "Split", "Text", "read_split", "read_texts"]

Split = Literal["search", "validation", "heldout"]
SPLITS: tuple[Split, ...] = get_args(Split)

NOISE = "noise"
DISTRACTORS = "distractors"

_PLAIN_SUFFIXES = (".txt", ".md")
_JSON_SUFFIXES = (".jsonl", ".json")
SUFFIXES = (*_PLAIN_SUFFIXES, *_JSON_SUFFIXES, ".parquet")
"""Endings of files that can be a corpus."""

_CYCLE: tuple[Split, ...] = ("search", "heldout", "search", "heldout", "validation")
_SHARES: dict[Split, tuple[float, float]] = {"search": (0.0, 0.4), "validation": (0.4, 0.6), "heldout": (0.6, 1.0)}


def read_texts(source: str | Path, *, column: str = "text") -> Iterator[Text]:
    """Yield the records of a corpus, one after another, never holding more than one file's block or batch.

    Args:
        source: A .txt or .md file (one record; several beyond 8 million characters), a .jsonl or .json file with one
            object a line, a .parquet file, a folder written by `datasets.Dataset.save_to_disk`, or a folder with such
            files at any depth, read in the order of their paths. Or one of the strings "noise" (RULER's five
            sentences again and again) and "distractors" (sentences that look like needles with other keys), which
            never end.
        column: The field or column that holds the text, where a file has several.

    Yields:
        Records with more in them than white space. An id is the path inside the source, with the record's number.

    Raises:
        ValueError: the source is missing, of an unknown kind, without text, not UTF-8, or lacks the column.
    """
    if source == NOISE:
        yield from (Text(f"{NOISE}:{number}", text) for number, text in enumerate(noise_records(), start=1))
    elif source == DISTRACTORS:
        records = distractor_records(len(_CYCLE))
        yield from (Text(f"{DISTRACTORS}:{number}", text) for number, text in enumerate(records, start=1))
    else:
        yield from _read_path(Path(source), column)


def read_split(source: str | Path, split: Split, *, num_characters: int, column: str = "text") -> Passage:
    """Return the beginning of what a corpus holds for one split; no more of the corpus is read than that needs.

    A corpus of five records or more is dealt out by record, two in five to search, two to held-out, one to
    validation; with fewer, each record is cut at 40 % and 60 % of its length. A record that repeats an earlier one is
    passed over. So splits share no text, whatever is asked for, with one exception: "noise" is the same everywhere.

    Args:
        source: See `read_texts`.
        split: Whose text.
        num_characters: How much is wanted. Less comes back where the split has less; the last record is whole.
        column: See `read_texts`.

    Raises:
        ValueError: the corpus cannot be read, the split is unknown, or nothing of the corpus falls to it.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, got {split!r}. Name one of them.")
    texts = read_texts(source, column=column)
    pieces = map(_whole, texts) if source == NOISE else _pieces_of_split(_without_repeats(texts), split)
    passage = Passage(tuple(_first_characters(pieces, num_characters)))
    if not passage.pieces:
        raise ValueError(f"the {split} part of {source} must hold text, got none. Give a corpus with more text.")
    return passage


def _read_path(path: Path, column: str) -> Iterator[Text]:
    if not path.exists():
        raise ValueError(
            f"the corpus must be a file or a folder, got {path}, which does not exist. "
            f"Check the path, or use {NOISE} or {DISTRACTORS}."
        )
    texts = _read_folder(path, column) if path.is_dir() else _read_file(path, path.name, column)
    is_empty = True
    for text in texts:
        if text.text and not text.text.isspace():
            is_empty = False
            yield text
    if is_empty:
        raise ValueError(f"the corpus must hold text, got none in {path}. Give another file or folder.")


def _read_folder(folder: Path, column: str) -> Iterator[Text]:
    if (folder / "dataset_dict.json").exists():
        names = sorted(state.parent.name for state in folder.glob("*/state.json"))
        raise ValueError(
            f"the corpus must be one dataset, got {folder} with several: {', '.join(names)}. Name one of its folders."
        )
    if (folder / "state.json").exists():
        yield from read_saved_dataset(folder, column)
        return
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise ValueError(
            f"a corpus folder must hold {', '.join(SUFFIXES)} files or a saved dataset, got none in {folder}. "
            "Give another folder."
        )
    for file in files:
        yield from _read_file(file, file.relative_to(folder).as_posix(), column)


def _read_file(path: Path, name: str, column: str) -> Iterator[Text]:
    suffix = path.suffix.lower()
    if suffix in _PLAIN_SUFFIXES:
        return read_plain_text(path, name)
    if suffix in _JSON_SUFFIXES:
        return read_json_lines(path, name, column)
    if suffix == ".parquet":
        return read_parquet(path, name, column)
    raise ValueError(f"a corpus file must end in {', '.join(SUFFIXES)}, got {name}. Convert it or rename it.")


def _without_repeats(texts: Iterable[Text]) -> Iterator[Text]:
    seen: set[bytes] = set()
    for text in texts:
        digest = sha256(text.text.encode()).digest()
        if digest not in seen:
            seen.add(digest)
            yield text


def _pieces_of_split(texts: Iterator[Text], split: Split) -> Iterator[Piece]:
    head = list(islice(texts, len(_CYCLE)))
    if len(head) < len(_CYCLE):
        yield from (piece for text in head for piece in _share(text, split))
        return
    for number, text in enumerate(chain(head, texts)):
        if _CYCLE[number % len(_CYCLE)] == split:
            yield _whole(text)


def _share(text: Text, split: Split) -> Iterator[Piece]:
    start, end = (_boundary(text.text, share) for share in _SHARES[split])
    if start < end:
        yield Piece(text.id, start, _with_newline(text.text[start:end]))


def _boundary(text: str, share: float) -> int:
    return len(text) if share == 1 else nearest_break(text, round(share * len(text)))


def _whole(text: Text) -> Piece:
    return Piece(text.id, 0, _with_newline(text.text))


def _with_newline(text: str) -> str:
    return text if text.endswith("\n") else f"{text}\n"


def _first_characters(pieces: Iterable[Piece], num_characters: int) -> Iterator[Piece]:
    num_read = 0
    for piece in pieces:
        yield piece
        num_read += len(piece.text)
        if num_read >= num_characters:
            return
