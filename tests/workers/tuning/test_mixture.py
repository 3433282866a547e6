"""The laws of the mixture: shares, order, lengths, and what it refuses."""

import pickle
import tracemalloc
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from workers.tuning.mixture import LengthBin, MixtureConfig, PackStream
from workers.tuning.packs import NOT_SCORED, Pack, SpecialTokens
from workers.tuning.schedule import DocumentOrder, spread

ORIGINAL, TARGET = 32, 128
SPECIAL = SpecialTokens(1, 2)
RECIPES = Path(__file__).parents[3] / "search" / "configs"


@dataclass
class Numbered:
    """Documents whose tokens are all their index, 10 added, so that a pack shows what it is made of."""

    lengths: npt.NDArray[np.int64]
    source_indices: npt.NDArray[np.int16]
    source_names: Sequence[str] = ("books", "web")
    fingerprint: str = "numbered"

    def ids(self, index: int) -> npt.NDArray[np.int32]:
        return np.full(self.lengths[index], index + 10, dtype=np.int32)


def numbered(*lengths: int, sources: Sequence[int] | None = None) -> Numbered:
    return Numbered(np.array(lengths), np.array(sources or [0] * len(lengths), dtype=np.int16))


def drawn(*, num_documents: int = 400, seed: int = 5) -> Numbered:
    rng = np.random.default_rng(seed)
    lengths = np.exp(rng.uniform(np.log(4), np.log(300), num_documents)).astype(int)
    return Numbered(lengths, rng.integers(0, 2, num_documents).astype(np.int16))


def mixture(**settings: object) -> MixtureConfig:
    config = replace(MixtureConfig(short_min_tokens=6, long_max_tokens=250), **settings)  # type: ignore[arg-type]
    return config.resolve(original_length=ORIGINAL, target_length=TARGET)


def stream(documents: Numbered, *, seed: int = 0, num_packs: int | None = None, **settings: object) -> PackStream:
    return PackStream(documents, mixture(**settings), SPECIAL, seed, num_packs=num_packs)


def same(one: Pack, other: Pack) -> bool:
    arrays = ("token_ids", "position_ids", "starts", "labels")
    return one.window == other.window and all(
        np.array_equal(getattr(one, name), getattr(other, name)) for name in arrays
    )


def test_packs_of_two_documents_are_what_one_writes_by_hand() -> None:
    # A document of 30 tokens with its two special ones is 32, the whole original window: four make a short pack.
    short = stream(numbered(30), long_share=0.0, num_packs=1)[0]
    whole = [1, *[10] * 30, 2]
    assert short.token_ids.tolist() == whole * 4
    assert short.starts.tolist() == [0, 32, 64, 96, 128]
    assert short.position_ids.tolist() == [*range(32)] * 4
    assert short.labels.tolist() == [NOT_SCORED, *whole[1:]] * 4
    long = stream(numbered(98), long_share=1.0, num_packs=1)[0]
    assert long.token_ids.tolist() == [1, *[10] * 98, 2, 1, *[10] * 27]
    assert long.position_ids.tolist() == [*range(128)]
    assert long.labels.tolist() == [NOT_SCORED, *long.token_ids[1:]]


@pytest.mark.parametrize("share", [0.9, 0.7, 1 / 3, 0.5])
@pytest.mark.parametrize("micro_batch_size", [1, 3])
def test_shares_by_tokens_hold_within_one_micro_batch_at_every_point(share: float, micro_batch_size: int) -> None:
    packs = stream(drawn(), long_share=share, micro_batch_size=micro_batch_size, num_packs=150)
    long_tokens = num_tokens = 0
    for first in range(0, len(packs), micro_batch_size):
        batch = [packs[index] for index in range(first, first + micro_batch_size)]
        assert len({pack.window for pack in batch}) == 1
        long_tokens += sum(len(pack.token_ids) for pack in batch if pack.window == "long")
        num_tokens += sum(len(pack.token_ids) for pack in batch)
        assert abs(long_tokens - share * num_tokens) < micro_batch_size * TARGET
    assert [packs.window(index) for index in range(len(packs))] == [pack.window for pack in packs]


@pytest.mark.parametrize("seed", range(20))
def test_every_kind_has_its_share_within_one_at_every_point(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shares = rng.dirichlet(np.full(rng.integers(1, 9), 0.5)) + 1e-4
    shares /= shares.sum()
    chosen = spread(shares.tolist(), 600)
    counts = np.cumsum(chosen[:, None] == np.arange(len(shares)), axis=0)
    assert np.abs(counts - np.arange(1, 601)[:, None] * shares).max() < 1


def test_a_stream_without_a_share_has_what_table_1_of_the_paper_says() -> None:
    packs = stream(drawn(), num_packs=100)
    assert Counter(pack.window for pack in packs) == {"long": 70, "short": 30}


def test_every_pack_has_the_same_length_and_one_beginning_for_each_document() -> None:
    for pack in stream(drawn(), num_packs=60):
        assert len(pack.token_ids) == len(pack.labels) == len(pack.position_ids) == TARGET
        assert np.count_nonzero(pack.token_ids == 1) == len(pack.documents)
        assert pack.token_ids.dtype == pack.labels.dtype == pack.position_ids.dtype == np.int64


def test_short_packs_never_reach_beyond_the_original_window() -> None:
    for pack in stream(drawn(), num_packs=60, long_share=0.3, long_min_tokens=60):
        if pack.window == "short":
            assert pack.position_ids.max() < ORIGINAL
            assert np.diff(pack.starts).max() <= ORIGINAL
            assert len(pack.starts) - 1 == len(pack.documents)


def test_a_document_between_the_original_window_and_the_shortest_long_one_is_cut_to_the_window() -> None:
    pack = stream(numbered(40), long_share=0.0, long_min_tokens=60, num_packs=1)[0]
    assert pack.token_ids.tolist() == [1, *[10] * 31] * 4


def test_the_mask_decides_whether_a_long_pack_is_one_stretch_or_one_a_document() -> None:
    full, document = (stream(drawn(), long_share=1.0, long_mask=mask, num_packs=30) for mask in ("full", "document"))
    for one, other in zip(full, document, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        assert one.starts.tolist() == [0, TARGET]
        assert one.num_scored == TARGET - 1
        first = np.flatnonzero(other.token_ids == 1)
        assert other.starts.tolist() == [*first, TARGET]
        assert other.position_ids[first].tolist() == [0] * len(first)
        assert other.labels[first].tolist() == [NOT_SCORED] * len(first)
        assert other.num_scored == TARGET - len(first)


def test_every_document_is_read_once_before_one_is_read_again() -> None:
    documents = drawn(num_documents=60)
    lengths = documents.lengths + 2
    packs = list(stream(documents, num_packs=90))
    for window, least, most in (("short", 6, ORIGINAL), ("long", ORIGINAL + 1, 250)):
        members = set(np.flatnonzero((lengths >= least) & (lengths <= most)).tolist())
        read = [document for pack in packs if pack.window == window for document in pack.documents]
        epochs = [read[first : first + len(members)] for first in range(0, len(read), len(members))]
        assert len(epochs) > 2
        assert all(set(epoch) == members for epoch in epochs[:-1])
        assert all(one != other for one, other in pairwise(epochs[:-1]))


def test_a_pack_begins_with_a_whole_document_and_cuts_the_last_one_only() -> None:
    documents = drawn()
    for pack in stream(documents, num_packs=40):
        for document in pack.documents[:-1]:
            wanted = min(documents.lengths[document], TARGET - 1, ORIGINAL if pack.window == "short" else TARGET)
            assert np.count_nonzero(pack.token_ids == document + 10) >= min(wanted, documents.lengths[document])


def test_without_a_length_the_stream_ends_before_a_document_comes_again() -> None:
    for seed in range(5):
        packs = stream(drawn(), seed=seed, micro_batch_size=2)
        read = Counter(document for pack in packs for document in pack.documents)
        assert len(packs) > 4
        assert set(read.values()) == {1}
        assert max(packs.num_epochs().values()) <= 1
        longer = stream(drawn(), seed=seed, micro_batch_size=2, num_packs=len(packs) + 2)
        repeated = Counter(document for pack in longer for document in pack.documents)
        # The stream ends no earlier than it must: another micro-batch fills a pack past a group's last document.
        assert max(longer.num_epochs().values()) > 1 or max(repeated.values()) > 1


def test_a_pack_is_a_function_of_seed_and_number_alone() -> None:
    packs = [*stream(drawn(), num_packs=80)]
    other = stream(drawn(), num_packs=80)
    for index in np.random.default_rng(1).permutation(80):
        assert same(other[int(index)], packs[index])
    assert all(same(one, two) for one, two in zip(stream(drawn(), num_packs=200), packs, strict=False))
    assert not all(same(one, two) for one, two in zip(stream(drawn(), seed=1, num_packs=80), packs, strict=True))
    copy = pickle.loads(pickle.dumps(other))
    assert same(copy[17], packs[17])
    with pytest.raises(IndexError):
        other[80]


def test_the_fingerprint_changes_with_whatever_changes_a_pack_and_with_nothing_else() -> None:
    documents = drawn()
    same_packs = [stream(documents, num_packs=4), stream(documents, num_packs=8)]
    others = [
        stream(documents, seed=1, num_packs=4),
        stream(documents, long_share=0.5, num_packs=4),
        stream(replace(documents, fingerprint="other"), num_packs=4),
        PackStream(documents, mixture(), SpecialTokens(1, None), 0, num_packs=4),
    ]
    assert len({packs.fingerprint() for packs in same_packs}) == 1
    assert len({packs.fingerprint() for packs in [*same_packs, *others]}) == 5


def test_length_bins_change_what_is_drawn_and_how_much_of_it() -> None:
    documents = drawn()
    lengths = documents.lengths + 2
    bounds = [(6, 16), (17, 32), (33, 60), (61, 250)]
    weights = (4.0, 1.0, 3.0, 2.0)
    bins = tuple(
        LengthBin(min_tokens=least, max_tokens=most, weight=weight)
        for (least, most), weight in zip(bounds, weights, strict=True)
    )
    seen = {}
    for name, chosen in {"all": bins, "some": bins[::2]}.items():
        packs = list(stream(documents, length_bins=chosen, num_packs=200))
        seen[name] = {document for pack in packs for document in pack.documents}
        counts: Counter[LengthBin] = Counter()
        for pack in packs:
            homes = [b for b in chosen if all(b.min_tokens <= lengths[d] <= b.max_tokens for d in pack.documents)]
            assert len(homes) == 1
            counts.update(homes)
        for length_bin in chosen:
            share = length_bin.weight / sum(b.weight for b in chosen)
            # One pack within its window, and a share of the one micro-batch that the window may be off.
            assert abs(counts[length_bin] - 200 * share) < 2
    assert seen["some"] < seen["all"]
    assert seen["some"] == set(np.flatnonzero(((lengths >= 6) & (lengths <= 16)) | ((lengths >= 33) & (lengths <= 60))))


def test_source_weights_are_shares_of_tokens_inside_each_window() -> None:
    documents = drawn()
    packs = list(stream(documents, source_weights={"books": 3.0, "web": 1.0}, long_share=0.5, num_packs=200))
    of_books = [{documents.source_indices[document] for document in pack.documents} for pack in packs]
    assert all(len(sources) == 1 for sources in of_books)
    for window in ("short", "long"):
        counts = Counter(min(sources) for sources, pack in zip(of_books, packs, strict=True) if pack.window == window)
        assert abs(counts[np.int16(0)] - 75) <= 1
        assert abs(counts[np.int16(1)] - 25) <= 1


def test_a_source_of_weight_0_is_left_out_and_one_without_documents_gives_its_share_away() -> None:
    documents = numbered(20, 20, 100, sources=[0, 1, 1])
    short = list(stream(documents, source_weights={"books": 1.0, "web": 0.0}, long_share=0.0, num_packs=4))
    assert {document for pack in short for document in pack.documents} == {0}
    both = list(stream(documents, source_weights={"books": 1.0, "web": 1.0}, long_share=0.5, num_packs=4))
    assert {document for pack in both if pack.window == "long" for document in pack.documents} == {2}


def test_a_bin_of_one_source_takes_no_other() -> None:
    documents = drawn()
    bins = (
        LengthBin(min_tokens=6, max_tokens=32, weight=1.0, source="web"),
        LengthBin(min_tokens=33, max_tokens=250, weight=4.0, source="books"),
    )
    packs = list(stream(documents, length_bins=bins, num_packs=50))
    assert Counter(pack.window for pack in packs) == {"long": 40, "short": 10}
    for pack in packs:
        assert {documents.source_indices[document] for document in pack.documents} == {int(pack.window == "short")}


def test_a_small_group_with_a_large_weight_is_repeated_in_proportion() -> None:
    bins = (
        LengthBin(min_tokens=6, max_tokens=16, weight=1.0),
        LengthBin(min_tokens=17, max_tokens=32, weight=1.0),
    )
    documents = numbered(*[14] * 8, *[30] * 64)
    packs = stream(documents, length_bins=bins, num_packs=64)
    # 32 packs each, of 8 documents of 16 tokens and of 4 documents of 32.
    assert packs.num_epochs() == {"6 to 16 tokens": 32.0, "17 to 32 tokens": 2.0}
    read = Counter(document for pack in packs for document in pack.documents)
    assert [read[index] for index in range(72)] == [32] * 8 + [2] * 64


def test_a_long_stream_over_many_documents_keeps_numbers_per_document_and_no_tokens() -> None:
    rng = np.random.default_rng(0)
    order_of = np.arange(200_000)
    lengths = rng.integers(100, 200_000, 200_000)  # 20 billion tokens
    tracemalloc.start()
    order = DocumentOrder(order_of, lengths, pack_length=131_072, seed=(0,))
    assert sum(piece.num_tokens for piece in order.pieces(order.num_packs_of_an_epoch() - 1)) == 131_072
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    # Lengths, order and sums are 8 bytes each, with as much again in passing; a pack's start is below 40.
    assert peak < 100 * len(lengths)


@pytest.mark.parametrize(
    ("recipe", "shares"),
    [
        ("sources", {"redpajama_v1": 0.45, "redpajama_v2": 0.25, "starcoder": 0.2, "fineweb_edu": 0.1}),
        ("lengths", {"64 to 8192": 0.3, "8193 to 100000": 0.3, "100001 to 200000": 0.4}),
    ],
)
def test_the_papers_two_tables_are_recipes_that_draw_what_they_say(recipe: str, shares: dict[str, float]) -> None:
    settings = yaml.safe_load((RECIPES / f"finetune-longrope2-{recipe}.yaml").read_text())
    bins = tuple(LengthBin(**length_bin) for length_bin in settings["mixture"]["length_bins"])
    config = MixtureConfig(length_bins=bins).resolve(original_length=8192, target_length=131_072)
    lengths = np.array([1000, 50_000, 150_000] * 4)
    names = ("redpajama_v1", "redpajama_v2", "starcoder", "fineweb_edu")
    documents = Numbered(lengths, np.repeat(np.arange(4, dtype=np.int16), 3), names)
    packs = PackStream(documents, config, SPECIAL, 0, num_packs=100)
    counts = Counter(group for index in range(100) for group in _labels(packs, index, shares))
    assert counts == {name: round(100 * share) for name, share in shares.items()}
    assert settings["training"]["num_steps"] * settings["training"]["micro_batches_per_step"] * 131_072 == 9_999_220_736


def _labels(packs: PackStream, index: int, names: dict[str, float]) -> list[str]:
    group = packs.groups[packs.group(index)].name
    return [name for name in names if group.startswith(name) or group.endswith(name)]


NO_PACKS: list[tuple[Callable[[], object], str]] = [
    (
        lambda: stream(numbered(20), num_packs=1),
        "the data must hold documents of 33 to 250 tokens for long packs, got none among 1 of 22 to 22 tokens. Add "
        "long documents, or change the mixture's length bounds or shares.",
    ),
    (
        lambda: stream(numbered(100, 400), num_packs=1),
        "the data must hold documents of 6 to 32 tokens for short packs, got none among 2 of 102 to 402 tokens. Add "
        "short documents, or change the mixture's length bounds or shares.",
    ),
    (lambda: stream(numbered(), num_packs=1), "got none among 0 of no token."),
    (
        lambda: stream(numbered(20), long_share=0.0, source_weights={"boks": 1.0}),
        "source 'boks' of the mixture must be one of books, web. Change its name.",
    ),
    (
        lambda: stream(numbered(20), long_share=0.0, source_weights={"books": 1.0}),
        "source_weights must weigh every source, got none for web. Add them; 0 leaves one out.",
    ),
    (
        lambda: mixture(pack_length=5, long_share=0.0),
        "pack_length must hold a document of every bin, got 5 with 6 to 32 tokens. Raise pack_length, or lower",
    ),
    (lambda: mixture(pack_length=999), "pack_length must be at most the target length of "),
    (
        lambda: mixture(pack_length=999, long_mask="document", long_max_tokens=999),
        "pack_length or long_max_tokens must",
    ),
    (lambda: mixture(pack_length=32), "pack_length must hold a document of every bin, got 32 with 33 to 250 tokens."),
    (lambda: mixture(long_min_tokens=32), "long_min_tokens must be above the original window of 32, got 32. Raise it."),
    (lambda: mixture(long_max_tokens=32), "long_max_tokens must be at least long_min_tokens 33, got 32. Raise it."),
    (lambda: mixture(short_min_tokens=33), "short_min_tokens must be within the original window of 32, got 33. Lower"),
    (
        lambda: mixture(length_bins=(LengthBin(min_tokens=6, max_tokens=40, weight=1.0),)),
        "a length bin must lie below long_min_tokens 33 or from there on, got 6 to 40 tokens. Split it.",
    ),
    (lambda: mixture(micro_batch_size=0), "micro_batch_size must be at least 1, got 0. Raise it."),
    (lambda: mixture(long_share=1.1), "long_share must be from 0 to 1, got 1.1. It is a share of tokens."),
    (
        lambda: mixture(long_share=0.5, length_bins=(LengthBin(min_tokens=6, max_tokens=32, weight=1.0),)),
        "long_share must not come with length_bins, whose weights decide it, got 0.5. Drop one of them.",
    ),
    (
        lambda: mixture(source_weights={"books": float("nan")}),
        "the weight of source 'books' must be 0 or above, got nan. Change it.",
    ),
    (
        lambda: mixture(
            source_weights={"books": 1.0},
            length_bins=(LengthBin(min_tokens=6, max_tokens=32, weight=1.0, source="web"),),
        ),
        "source_weights must have a bin to weigh in, got bins that name a source each. Drop one.",
    ),
    (
        lambda: mixture(
            length_bins=(
                LengthBin(min_tokens=6, max_tokens=20, weight=1.0),
                LengthBin(min_tokens=20, max_tokens=32, weight=1.0, source="web"),
            )
        ),
        "length bins must not overlap, got 6 to 20 tokens and 20 to 32 tokens of web. Change their bounds.",
    ),
    (
        lambda: LengthBin(min_tokens=9, max_tokens=8, weight=1.0),
        "a length bin must go from 1 or more tokens up, got 9 to 8. Change its bounds.",
    ),
    (
        lambda: LengthBin(min_tokens=1, max_tokens=8, weight=0.0),
        "a length bin must have a weight above 0, got 0.0. Change it, or drop the bin.",
    ),
]


@pytest.mark.parametrize(("refused", "message"), NO_PACKS, ids=range(len(NO_PACKS)))
def test_what_cannot_be_mixed_is_refused_in_one_line(refused: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        refused()
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
