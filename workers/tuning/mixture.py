"""The mixture of context windows: which documents go into short and long packs, in which shares, in which order."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from workers.tuning.mixture_config import LengthBin, MixtureConfig
from workers.tuning.packs import Pack, SpecialTokens, Window, pack
from workers.tuning.schedule import DocumentOrder, ordinals, spread

__all__ = ["Documents", "Group", "LengthBin", "MixtureConfig", "PackStream", "document_groups"]


class Documents(Protocol):
    """Tokenised documents; what a `PackStream` needs of `documents.TokenisedDocuments`."""

    @property
    def lengths(self) -> npt.NDArray[np.int64]:
        """Tokens of each without special ones, shape (num_documents,)."""

    @property
    def source_names(self) -> Sequence[str]:
        """Names of the sources."""

    @property
    def source_indices(self) -> npt.NDArray[np.int16]:
        """Which source each document is of, shape (num_documents,)."""

    @property
    def fingerprint(self) -> str:
        """Changes with any document."""

    def ids(self, index: int) -> npt.NDArray[np.int32]:
        """Return a document's tokens without special ones, shape (lengths[index],)."""


class Group(NamedTuple):
    """Documents that are drawn evenly, and their share of all tokens."""

    name: str
    window: Window
    documents: npt.NDArray[np.int64]
    """Their indices, shape (num_documents,)."""
    share: float


class PackStream(Sequence[Pack]):
    """Packs in their order, each a function of the settings, the seed and its number alone.

    Every `micro_batch_size` packs have one window. After any number of them, the tokens of short and of long packs
    are what their shares say, give or take less than one micro-batch; within a window every group of documents (a
    length bin, or a source's part of one) has its share, give or take less than one pack. A pack holds documents of
    one group; a group's documents are all used before one of them comes again.
    """

    def __init__(
        self,
        documents: Documents,
        config: MixtureConfig,
        special: SpecialTokens,
        seed: int,
        *,
        num_packs: int | None = None,
    ) -> None:
        """Plan the packs; reads no document.

        Args:
            documents: What there is to read.
            config: Resolved, see `MixtureConfig.resolve`.
            special: What documents begin and end with.
            seed: Decides the order of the documents.
            num_packs: Length of the stream; default: as many as there are, in these shares, before any document
                comes again, and at least one micro-batch; always whole micro-batches.

        Raises:
            ValueError: A length bin, or the short or the long ones among the documents, has no document.
        """
        self._documents, self._config, self._special, self._seed = documents, config, special, seed
        self.groups = document_groups(documents, config, special)
        self._orders = [self._order(number, group) for number, group in enumerate(self.groups)]
        self._groups_of_packs = self._plan(self._most_packs_of_an_epoch() if num_packs is None else num_packs)
        self._ordinals = ordinals(self._groups_of_packs)
        if num_packs is None:
            self._end_before_repeats()
        for group, order in enumerate(self._orders):
            order.prepare(int(np.count_nonzero(self._groups_of_packs == group)))

    def __len__(self) -> int:
        return len(self._groups_of_packs)

    def __getitem__(self, index: int) -> Pack:  # type: ignore[override]
        """Return a pack; raises IndexError where there is none."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"a pack's number must be below {len(self)}, got {index}")
        group = self.group(index)
        pieces = self._orders[group].pieces(int(self._ordinals[index]))
        window = self.groups[group].window
        return pack(
            [
                self._special.around(self._documents.ids(piece.document), num_tokens=piece.num_tokens)
                for piece in pieces
            ],
            window=window,
            attend_across=window == "long" and self._config.long_mask == "full",
            documents=tuple(piece.document for piece in pieces),
        )

    @property
    def pack_length(self) -> int:
        """Tokens of every pack."""
        assert self._config.pack_length is not None
        return self._config.pack_length

    def window(self, index: int) -> Window:
        """Return a pack's window without reading it."""
        return self.groups[self.group(index)].window

    def group(self, index: int) -> int:
        """Return which of `groups` a pack is drawn from."""
        return int(self._groups_of_packs[index])

    def num_epochs(self) -> dict[str, float]:
        """Return how often the documents of each group are read, by the group's name."""
        counts = np.bincount(self._groups_of_packs, minlength=len(self.groups))
        return {
            group.name: order.num_documents_of(int(count)) / order.num_documents
            for group, order, count in zip(self.groups, self._orders, counts, strict=True)
        }

    def fingerprint(self) -> str:
        """Return what changes whenever a pack could: by documents, settings, special tokens or the seed."""
        facts = {
            "documents": self._documents.fingerprint,
            "config": asdict(self._config),
            "special": list(self._special),
            "seed": self._seed,
        }
        return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

    def _order(self, number: int, group: Group) -> DocumentOrder:
        lengths = self._documents.lengths[group.documents] + self._special.num_tokens
        if group.window == "short":
            assert self._config.original_length is not None
            lengths = np.minimum(lengths, self._config.original_length)
        return DocumentOrder(group.documents, lengths, pack_length=self.pack_length, seed=(self._seed, number))

    def _plan(self, num_packs: int) -> npt.NDArray[np.int16]:
        """Return the group of every pack, for whole micro-batches; a longer plan begins like a shorter one."""
        windows = sorted({group.window for group in self.groups})
        shares = [sum(group.share for group in self.groups if group.window == window) for window in windows]
        size = self._config.micro_batch_size
        windows_of_packs = np.repeat(spread(shares, max(1, -(-num_packs // size))), size)
        groups_of_packs = np.empty(len(windows_of_packs), dtype=np.int16)
        for number, (window, share) in enumerate(zip(windows, shares, strict=True)):
            members = np.array([index for index, group in enumerate(self.groups) if group.window == window])
            places = np.flatnonzero(windows_of_packs == number)
            within = [self.groups[index].share / share for index in members]
            groups_of_packs[places] = members[spread(within, len(places))]
        return groups_of_packs

    def _most_packs_of_an_epoch(self) -> int:
        size = self._config.micro_batch_size
        packs = (
            order.num_packs_of_an_epoch() / group.share for order, group in zip(self._orders, self.groups, strict=True)
        )
        return int(min(packs)) + 2 * size

    def _end_before_repeats(self) -> None:
        """Drop the micro-batches from the first one on that reads a document again; one stays."""
        in_epoch = np.array([order.num_packs_of_an_epoch() for order in self._orders])
        repeats = np.flatnonzero(self._ordinals >= in_epoch[self._groups_of_packs])
        size = self._config.micro_batch_size
        if len(repeats):
            end = max(size, int(repeats[0]) // size * size)
            self._groups_of_packs, self._ordinals = self._groups_of_packs[:end], self._ordinals[:end]


def document_groups(documents: Documents, config: MixtureConfig, special: SpecialTokens) -> list[Group]:
    """Return which documents are drawn together and how much of the mixture they are; shares sum to 1.

    Args:
        documents: What there is.
        config: Resolved.
        special: Counted in the documents' lengths.

    Raises:
        ValueError: A bin holds no document, or a source that has a weight is unknown.
    """
    _check_sources(config, documents.source_names)
    bins = config.bins()
    total = sum(length_bin.weight for length_bin in bins)
    lengths = documents.lengths + special.num_tokens
    groups: list[Group] = []
    for length_bin in bins:
        members = _members(length_bin, documents, lengths, config)
        parts = _parts_by_source(members, length_bin, documents, config.source_weights)
        if not parts:
            raise ValueError(_none_in_bin(length_bin, lengths, config))
        window: Window = "long" if config.is_long(length_bin) else "short"
        groups += [Group(name, window, part, length_bin.weight / total * share) for name, part, share in parts]
    return groups


def _parts_by_source(
    members: npt.NDArray[np.int64], length_bin: LengthBin, documents: Documents, weights: Mapping[str, float]
) -> list[tuple[str, npt.NDArray[np.int64], float]]:
    """Return name, documents and share of each source's part of a bin, or of the bin; sources with none are out."""
    name = f"{length_bin}"
    if not len(members):
        return []
    if length_bin.source is not None or not weights:
        return [(name, members, 1.0)]
    sources = documents.source_indices[members]
    parts = [
        (f"{name} of {source}", members[sources == index], weights[source])
        for index, source in enumerate(documents.source_names)
    ]
    parts = [part for part in parts if len(part[1]) and part[2] > 0]
    total = sum(weight for _, _, weight in parts)
    return [(part_name, part, weight / total) for part_name, part, weight in parts]


def _members(
    length_bin: LengthBin, documents: Documents, lengths: npt.NDArray[np.int64], config: MixtureConfig
) -> npt.NDArray[np.int64]:
    least = max(length_bin.min_tokens, config.short_min_tokens)
    most = min(length_bin.max_tokens, config.long_max_tokens)
    inside = (lengths >= least) & (lengths <= most)
    if length_bin.source is not None:
        inside &= documents.source_indices == list(documents.source_names).index(length_bin.source)
    return np.flatnonzero(inside)


def _check_sources(config: MixtureConfig, names: Sequence[str]) -> None:
    asked = [*config.source_weights, *(length_bin.source for length_bin in config.length_bins if length_bin.source)]
    for name in asked:
        if name not in names:
            raise ValueError(f"source {name!r} of the mixture must be one of {', '.join(names)}. Change its name.")
    missing = [name for name in names if config.source_weights and name not in config.source_weights]
    if missing:
        raise ValueError(
            f"source_weights must weigh every source, got none for {', '.join(missing)}. Add them; 0 leaves one out."
        )


def _none_in_bin(length_bin: LengthBin, lengths: npt.NDArray[np.int64], config: MixtureConfig) -> str:
    window = "long" if config.is_long(length_bin) else "short"
    found = f"{lengths.min()} to {lengths.max()} tokens" if len(lengths) else "no token"
    return (
        f"the data must hold documents of {length_bin} for {window} packs, got none among {len(lengths)} of {found}. "
        f"Add {window} documents, or change the mixture's length bounds or shares."
    )
