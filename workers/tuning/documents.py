"""Documents for training: text of any kind, tokenised once into memory-mapped Arrow files."""

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple, TypedDict

import numpy as np
import numpy.typing as npt

from needles.corpus import SUFFIXES, read_texts
from workers.tuning.packs import SpecialTokens

if TYPE_CHECKING:
    from datasets import Dataset, Features
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_FORMAT = 1  # of the folder that is kept; part of its name
_BATCH = 16  # documents tokenised at once; a document may have millions of characters
_ROWS_WRITTEN = 256


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of tokenised documents beside their tokens."""

    fingerprint: str
    source_names: tuple[str, ...]
    skipped: tuple[str, ...]
    """Why each file that could not be read was left out."""


class TokenisedDocuments:
    """Documents as token ids without special ones, on disk; only their lengths and sources are in memory."""

    def __init__(self, dataset: "Dataset", manifest: Manifest) -> None:
        """Take an opened dataset with the columns `token_ids`, `num_tokens` and `source`."""
        self._dataset = dataset.with_format("arrow")
        self._manifest = manifest
        self.lengths: npt.NDArray[np.int64] = _column(dataset, "num_tokens").astype(np.int64)
        self.source_indices: npt.NDArray[np.int16] = _column(dataset, "source").astype(np.int16)

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def source_names(self) -> tuple[str, ...]:
        """Names that `source_indices` point to."""
        return self._manifest.source_names

    @property
    def fingerprint(self) -> str:
        """Hash of the files' content, the tokenizer, and what else decides the tokens."""
        return self._manifest.fingerprint

    @property
    def skipped(self) -> tuple[str, ...]:
        """Why each file that could not be read was left out."""
        return self._manifest.skipped

    def ids(self, index: int) -> npt.NDArray[np.int32]:
        """Return a document's tokens, shape (lengths[index],)."""
        row: npt.NDArray[np.int32] = self._dataset[index]["token_ids"].chunk(0).flatten().to_numpy()
        return row

    def name(self, index: int) -> str:
        """Return where a document is from: its source, file, and number in the file."""
        row = self._dataset[index]
        return f"{self.source_names[self.source_indices[index]]}: {row['id'][0].as_py()}"


class Shard(NamedTuple):
    """A file of a source, or a folder that is a saved dataset."""

    source: int
    path: Path


class _Row(TypedDict):
    source: int
    shard: int
    id: str
    text: str
    is_text: bool


def tokenise(
    sources: Mapping[str, str | Path],
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    *,
    column: str = "text",
    num_processes: int = 1,
    skip_unreadable: bool = False,
) -> TokenisedDocuments:
    """Return the documents of sources as token ids; tokenised only where `folder` does not hold them already.

    What is kept is found again by the content of the files, so that a changed, added or renamed one is seen. Special
    tokens that stand in a text are taken as such; none are added.

    Args:
        sources: Files or folders by name; see `needles.corpus.read_texts` for their kinds.
        tokenizer: Of the model.
        folder: Where the tokens are kept; made if missing.
        column: Field or column that holds the text.
        num_processes: Processes that read and tokenise.
        skip_unreadable: Leave out files that cannot be read to their end, or hold no text, and say so in the log.

    Raises:
        ValueError: A source is missing or has no file of text; a file cannot be read, which is named; or nothing is
            left.
        OSError: The disk is full or not writable.
    """
    if not sources:
        raise ValueError("the data must be one source or more, got none. Name files or folders.")
    shards = [Shard(number, path) for number, source in enumerate(sources.values()) for path in _shards(Path(source))]
    fingerprint = _fingerprint(shards, tuple(sources), tokenizer, column, num_processes)
    kept = folder / fingerprint[:16]
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        _make(kept, shards, tuple(sources), tokenizer, fingerprint, column, num_processes, skip_unreadable)
    return _opened(kept, skip_unreadable)


def special_tokens(tokenizer: "PreTrainedTokenizerBase") -> SpecialTokens:
    """Return what documents begin and end with; the log says what the tokenizer does not have."""
    special = SpecialTokens(tokenizer.bos_token_id, tokenizer.eos_token_id)
    for kind, token in special._asdict().items():
        if token is None:
            logger.warning("the tokenizer has no token for the %s of a text: documents are packed without", kind)
    return special


def _opened(folder: Path, skip_unreadable: bool) -> TokenisedDocuments:
    import datasets

    try:
        facts = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
        manifest = Manifest(
            fingerprint=facts["fingerprint"],
            source_names=tuple(facts["source_names"]),
            skipped=tuple(facts["skipped"]),
        )
        documents = TokenisedDocuments(datasets.load_from_disk(str(folder / "documents")), manifest)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"the tokens that are kept in {folder} must be whole, got: {error}. Remove that folder: they are made anew."
        ) from error
    if manifest.skipped and not skip_unreadable:
        raise ValueError(_unreadable(manifest.skipped))
    for problem in manifest.skipped:
        logger.warning("left out: %s", problem)
    return documents


def _make(
    kept: Path,
    shards: Sequence[Shard],
    source_names: tuple[str, ...],
    tokenizer: "PreTrainedTokenizerBase",
    fingerprint: str,
    column: str,
    num_processes: int,
    skip_unreadable: bool,
) -> None:
    """Tokenise into a folder that is there whole or not at all."""
    with TemporaryDirectory(dir=kept.parent, prefix=".tokenising-", ignore_cleanup_errors=True) as scratch:
        texts, problems = _read(shards, Path(scratch), column, num_processes, stop=not skip_unreadable)
        if problems and not skip_unreadable:
            raise ValueError(_unreadable(problems))
        if not len(texts):
            raise ValueError(f"the data must hold text, got none that can be read: {'; '.join(problems)}")
        tokens = texts.map(
            _token_ids,
            batched=True,
            batch_size=_BATCH,
            writer_batch_size=_ROWS_WRITTEN,
            remove_columns=["text", "shard", "is_text"],
            features=_token_features(),
            fn_kwargs={"tokenizer": tokenizer},
            num_proc=_several(num_processes, len(texts)),
            new_fingerprint=fingerprint[:16],
            desc="Tokenising",
        )
        made = Path(scratch) / "made"
        tokens.save_to_disk(str(made / "documents"))
        manifest = Manifest(fingerprint=fingerprint, source_names=source_names, skipped=problems)
        (made / "manifest.json").write_text(json.dumps(asdict(manifest)), encoding="utf-8")
        if not kept.exists():  # another process may have been faster
            made.rename(kept)


def _read(
    shards: Sequence[Shard], scratch: Path, column: str, num_processes: int, *, stop: bool
) -> tuple["Dataset", tuple[str, ...]]:
    """Return the texts of the readable files, and what is wrong with the others."""
    import datasets

    rows = datasets.Dataset.from_generator(
        _rows,
        features=_text_features(),
        cache_dir=str(scratch),
        gen_kwargs={
            "shards": list(enumerate(shards)),
            "column": column,
            "stop": stop,
        },
        num_proc=_several(num_processes, len(shards)),
        writer_batch_size=_ROWS_WRITTEN,
    )
    numbers, texts = _column(rows, "shard"), _column(rows, "is_text").astype(np.bool_)
    if texts.all():
        return rows, ()
    problems = tuple(rows.select(np.flatnonzero(~texts))["text"])
    unreadable = np.isin(numbers, numbers[~texts])
    return rows.select(np.flatnonzero(~unreadable)), problems


def _rows(shards: Sequence[tuple[int, Shard]], column: str, stop: bool) -> Iterator[_Row]:
    """Yield the records of files; a file that fails ends with a row that says why."""
    for number, shard in shards:
        try:
            for text in read_texts(shard.path, column=column):
                yield _Row(source=shard.source, shard=number, id=text.id, text=text.text, is_text=True)
        except (ValueError, OSError) as error:
            problem = f"{shard.path}: {error}"
            yield _Row(source=shard.source, shard=number, id="", text=problem, is_text=False)
            if stop:
                return


def _token_ids(
    batch: Mapping[str, list[str]], tokenizer: "PreTrainedTokenizerBase"
) -> dict[str, list[npt.NDArray[np.int32]] | list[int]]:
    encoded = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
    token_ids = [np.asarray(ids, dtype=np.int32) for ids in encoded]
    return {"token_ids": token_ids, "num_tokens": [len(ids) for ids in token_ids]}


def _shards(source: Path) -> list[Path]:
    """Return the files of a source in the order of their paths; a saved dataset is one."""
    if not source.exists():
        raise ValueError(f"the data must be files or folders, got {source}, which does not exist. Check the path.")
    if source.is_file() or (source / "state.json").exists() or (source / "dataset_dict.json").exists():
        return [source]
    files = [path for path in sorted(source.rglob("*")) if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not files:
        raise ValueError(
            f"a folder of data must hold {', '.join(sorted(SUFFIXES))} files or a saved dataset, "
            f"got none in {source}. Give another folder."
        )
    return files


def _fingerprint(
    shards: Sequence[Shard],
    source_names: tuple[str, ...],
    tokenizer: "PreTrainedTokenizerBase",
    column: str,
    num_processes: int,
) -> str:
    with ThreadPoolExecutor(num_processes) as pool:
        contents = list(pool.map(_content_hash, [shard.path for shard in shards]))
    facts = {
        "format": _FORMAT,
        "column": column,
        "tokenizer": _tokenizer_hash(tokenizer),
        "sources": source_names,
        "shards": [(shard.source, shard.path.name, content) for shard, content in zip(shards, contents, strict=True)],
    }
    return sha256(json.dumps(facts).encode()).hexdigest()


def _content_hash(path: Path) -> str:
    files = sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]
    whole = sha256()
    for file in files:
        with file.open("rb") as opened:
            whole.update(file_digest(opened, "sha256").digest())
    return whole.hexdigest()


def _tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    with TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return _content_hash(Path(folder))


def _text_features() -> "Features":
    from datasets import Features, Value

    return Features(
        source=Value("int16"),
        shard=Value("int64"),
        id=Value("string"),
        text=Value("large_string"),  # offsets of a plain string end at 2 GB a batch
        is_text=Value("bool"),
    )


def _token_features() -> "Features":
    from datasets import Features, List, Value

    return Features(
        source=Value("int16"), id=Value("string"), token_ids=List(Value("int32")), num_tokens=Value("int64")
    )


def _column(dataset: "Dataset", name: str) -> npt.NDArray[np.generic]:
    """Return a column of numbers, shape (num_rows,)."""
    values: npt.NDArray[np.generic] = dataset.with_format("arrow")[name][:].to_numpy()
    return values


def _several(num_processes: int, num_items: int) -> int | None:
    """Return how many processes the library should start; None for no other than this one."""
    processes = min(num_processes, num_items)
    return processes if processes > 1 else None


def _unreadable(problems: Sequence[str]) -> str:
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return (
        f"every file of the data must be readable to its end, got {problems[0]}{more} "
        "Or leave such files out with skip_unreadable."
    )
