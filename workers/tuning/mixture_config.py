"""What the mixture of context windows is made of, as settings. Free of torch, so that a command line can read it."""

from dataclasses import dataclass, field, replace
from itertools import combinations
from math import isfinite
from typing import Literal

DEFAULT_LONG_SHARE = 0.7
"""Table 1 of LongRoPE2: 7 of 10 billion tokens. Its section 4.1 says 9; the published example has 5.2 of 9.4."""


@dataclass(frozen=True, kw_only=True)
class LengthBin:
    """Documents of certain lengths, special tokens included, and how much of the mixture they are.

    Raises:
        ValueError: No length lies between the bounds, or the weight is not a number above 0.
    """

    min_tokens: int
    """Fewest tokens of a document."""
    max_tokens: int
    """Most tokens of a document."""
    weight: float
    """Share of the mixture's tokens, in any unit: shares are weights over the sum of all weights."""
    source: str | None = None
    """Only documents of this source; default: of all."""

    def __post_init__(self) -> None:
        """Refuse what no document can be in."""
        if not 1 <= self.min_tokens <= self.max_tokens:
            raise ValueError(
                f"a length bin must go from 1 or more tokens up, got {self.min_tokens} to {self.max_tokens}. "
                "Change its bounds."
            )
        if not (isfinite(self.weight) and self.weight > 0):
            raise ValueError(f"a length bin must have a weight above 0, got {self.weight}. Change it, or drop the bin.")

    def __str__(self) -> str:
        source = f" of {self.source}" if self.source else ""
        return f"{self.min_tokens} to {self.max_tokens} tokens{source}"


@dataclass(frozen=True, kw_only=True)
class MixtureConfig:
    """What short and long packs are made of.

    Lengths of documents count their special tokens. A document shorter than `long_min_tokens` is a short one, cut to
    the original window where it is longer.

    Raises:
        ValueError: A setting is out of range, or two contradict each other.

    Source: LongRoPE2, arXiv:2502.20082, section 4.1 and Table 1.
    """

    pack_length: int | None = None
    """Tokens of a pack; default: the target length."""
    original_length: int | None = None
    """Most tokens of a document in a short pack; default: the model's pre-training window."""
    long_share: float | None = None
    """Share of tokens in long packs, 0 to 1; default: what length_bins say, else 0.7."""
    short_min_tokens: int = 64
    """Fewest tokens of a short document; shorter ones are left out."""
    long_min_tokens: int | None = None
    """Fewest tokens of a long document; default: one more than the original window."""
    long_max_tokens: int = 200_000
    """Most tokens of a long document; longer ones are left out."""
    long_mask: Literal["full", "document"] = "full"
    """Attention and positions in a long pack: over the whole pack, or within each document."""
    length_bins: tuple[LengthBin, ...] = ()
    """Lengths with their weights; documents in no bin are left out. Default: all short, and all long documents."""
    source_weights: dict[str, float] = field(default_factory=dict)
    """Weights of all sources by name, by tokens, inside every bin that names no source; default: as they come."""
    micro_batch_size: int = 1
    """Packs that follow each other with the same window."""

    def __post_init__(self) -> None:
        """Refuse what cannot be mixed."""
        for name in ("pack_length", "original_length", "short_min_tokens", "long_min_tokens", "micro_batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}. Raise it.")
        if self.long_share is not None and not 0 <= self.long_share <= 1:
            raise ValueError(f"long_share must be from 0 to 1, got {self.long_share}. It is a share of tokens.")
        if self.long_share is not None and self.length_bins:
            raise ValueError(
                f"long_share must not come with length_bins, whose weights decide it, got {self.long_share}. "
                "Drop one of them."
            )
        for name, weight in self.source_weights.items():
            if not (isfinite(weight) and weight >= 0):
                raise ValueError(f"the weight of source {name!r} must be 0 or above, got {weight}. Change it.")
        if self.source_weights and self.length_bins and all(length_bin.source for length_bin in self.length_bins):
            raise ValueError("source_weights must have a bin to weigh in, got bins that name a source each. Drop one.")
        for one, other in combinations(self.length_bins, 2):
            if _overlap(one, other):
                raise ValueError(f"length bins must not overlap, got {one} and {other}. Change their bounds.")

    def resolve(self, *, original_length: int, target_length: int) -> "MixtureConfig":
        """Return the mixture with every length given, checked against each other.

        Args:
            original_length: The model's pre-training window, tokens.
            target_length: What the factors are for, tokens.

        Raises:
            ValueError: A pack is shorter than a document may be, or reaches beyond the target length; long documents
                fit into the original window; or a length bin holds short and long documents.
        """
        original = self.original_length if self.original_length is not None else original_length
        resolved = replace(
            self,
            original_length=original,
            pack_length=self.pack_length if self.pack_length is not None else target_length,
            long_min_tokens=self.long_min_tokens if self.long_min_tokens is not None else original + 1,
        )
        _check_lengths(resolved)
        _check_reach(resolved, target_length)
        return resolved

    def bins(self) -> tuple[LengthBin, ...]:
        """Return the length bins in force; the mixture is resolved."""
        if self.length_bins:
            return self.length_bins
        assert self.long_min_tokens is not None
        share = DEFAULT_LONG_SHARE if self.long_share is None else self.long_share
        bins: tuple[LengthBin, ...] = ()
        if share < 1:
            most = self.long_min_tokens - 1
            bins += (LengthBin(min_tokens=self.short_min_tokens, max_tokens=most, weight=1 - share),)
        if share > 0:
            bins += (LengthBin(min_tokens=self.long_min_tokens, max_tokens=self.long_max_tokens, weight=share),)
        return bins

    def is_long(self, length_bin: LengthBin) -> bool:
        """Return whether documents of a bin go into long packs; the mixture is resolved."""
        assert self.long_min_tokens is not None
        return length_bin.min_tokens >= self.long_min_tokens


def _check_lengths(config: MixtureConfig) -> None:
    pack_length, original, long_min = config.pack_length, config.original_length, config.long_min_tokens
    assert pack_length is not None
    assert original is not None
    assert long_min is not None
    if long_min <= original:
        raise ValueError(f"long_min_tokens must be above the original window of {original}, got {long_min}. Raise it.")
    if config.long_share != 0 and config.long_max_tokens < long_min:
        raise ValueError(
            f"long_max_tokens must be at least long_min_tokens {long_min}, got {config.long_max_tokens}. Raise it."
        )
    if config.long_share != 1 and config.short_min_tokens > original:
        raise ValueError(
            f"short_min_tokens must be within the original window of {original}, got {config.short_min_tokens}. "
            "Lower it."
        )
    for length_bin in config.bins():
        if length_bin.min_tokens < long_min <= length_bin.max_tokens:
            raise ValueError(
                f"a length bin must lie below long_min_tokens {long_min} or from there on, got {length_bin}. Split it."
            )
        if pack_length < length_bin.min_tokens:
            raise ValueError(
                f"pack_length must hold a document of every bin, got {pack_length} with {length_bin}. "
                "Raise pack_length, or lower the bin's bounds."
            )


def _check_reach(config: MixtureConfig, target_length: int) -> None:
    """Refuse positions in long packs for which there are no factors."""
    assert config.pack_length is not None
    whole = config.long_mask == "full"
    reach = config.pack_length if whole else min(config.pack_length, config.long_max_tokens)
    if reach > target_length and any(config.is_long(length_bin) for length_bin in config.bins()):
        name = "pack_length" if whole else "pack_length or long_max_tokens"
        raise ValueError(
            f"{name} must be at most the target length of {target_length}, got {reach}: the factors are for no more. "
            "Lower it, or take factors for a longer window."
        )


def _overlap(one: LengthBin, other: LengthBin) -> bool:
    same_source = one.source == other.source or one.source is None or other.source is None
    return same_source and one.min_tokens <= other.max_tokens and other.min_tokens <= one.max_tokens
