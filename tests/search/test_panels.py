"""Panels: a window of documents that moves, an order in which any few cover all depths, and blocks of batches."""

from itertools import pairwise

import numpy as np
import pytest

from needles.document import NeedleDocument
from needles.needle import Needle
from search.panels import Panels, batches_of, by_depth, common_batch_size
from workers.scorer import WorkerSpeed


def make_document(number: int, depth: float) -> NeedleDocument:
    return NeedleDocument(
        id=f"search-{number:03d}",
        split="search",
        token_ids=np.zeros(8, dtype=np.int32),
        answer_start=4,
        depth=depth,
        needle=Needle("brave-otter", "1234567"),
        passage_id="",
        passage_sha256="",
        sha256="",
    )


def make_panels(num: int, **options: object) -> Panels:
    return Panels(documents=tuple(f"d{number:02d}" for number in range(num)), **options)  # type: ignore[arg-type]


def depths_in_order(num: int, *, seed: int = 0) -> list[float]:
    """Return the depths of evenly spread documents in the order of `by_depth`; they are given in a random one."""
    depths = {f"search-{number:03d}": (number + 0.5) / num for number in range(num)}
    places = np.random.default_rng(seed).permutation(num)
    return [depths[name] for name in by_depth([make_document(place, (place + 0.5) / num) for place in places])]


def test_eight_depths_are_in_the_order_of_van_der_corput() -> None:
    # By hand: the binary digits of 0, 1, 2, ... read backwards are 0, 4, 2, 6, 1, 5, 3, 7
    expected = [0, 4, 2, 6, 1, 5, 3, 7]
    assert [round(depth * 8 - 0.5) for depth in depths_in_order(8)] == expected


@pytest.mark.parametrize("num", [5, 12, 32, 50, 100])
def test_all_documents_are_there_once_in_whatever_order_they_come(num: int) -> None:
    assert sorted(depths_in_order(num)) == [(number + 0.5) / num for number in range(num)]
    assert depths_in_order(num, seed=1) == depths_in_order(num, seed=2)


@pytest.mark.parametrize("num", [32, 50, 64, 100])
@pytest.mark.parametrize("size", [4, 8, 16])
def test_any_few_in_a_row_hold_needles_from_everywhere_and_the_first_few_do_best(num: int, size: int) -> None:
    order = depths_in_order(num)
    window = Panels(documents=tuple(map(str, range(num))), size=size, num_fresh=1)
    for generation in range(2 * num):
        depths = sorted(order[int(place)] for place in window.of(generation))
        largest_gap = max(later - earlier for earlier, later in pairwise([0.0, *depths, 1.0]))
        # evenly spread ones are 1 / size apart; where the number is no power of 2 some are left out
        assert largest_gap <= (2 if num in (32, 64) else 3) / size
    first = sorted(order[:size])
    assert max(later - earlier for earlier, later in pairwise([0.0, *first, 1.0])) <= 2 / size


@pytest.mark.parametrize(("num", "size", "num_fresh"), [(16, 4, 4), (16, 4, 1), (10, 4, 3), (7, 5, 5), (9, 9, 0)])
def test_every_generation_has_distinct_documents_and_shares_those_that_are_not_fresh(
    num: int, size: int, num_fresh: int
) -> None:
    panels = make_panels(num, size=size, num_fresh=num_fresh)
    generations = [panels.of(number) for number in range(3 * num)]
    for earlier, later in pairwise(generations):
        assert len(set(later)) == size
        wrapped = max(0, size + num_fresh - num)  # a small set begins anew within the window
        assert len(set(earlier) & set(later)) == size - num_fresh + wrapped
        assert earlier[num_fresh:] == later[: size - num_fresh]
    if num_fresh:
        assert {document for generation in generations for document in generation} == set(panels.documents)


def test_without_fresh_documents_all_generations_have_the_first() -> None:
    panels = make_panels(10, size=4)
    assert {panels.of(generation) for generation in range(20)} == {("d00", "d01", "d02", "d03")}


def test_the_window_worked_out_by_hand_begins_anew_at_the_end() -> None:
    panels = make_panels(5, size=3, num_fresh=2, always=("short",))
    assert panels.of(0) == ("d00", "d01", "d02", "short")
    assert panels.of(1) == ("d02", "d03", "d04", "short")
    assert panels.of(2) == ("d04", "d00", "d01", "short")


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
@pytest.mark.parametrize("looks", [[22], [4, 8, 16, 22], [4, 22], [20, 22]])
def test_blocks_part_the_documents_and_no_batch_mixes_lengths(batch_size: int, looks: list[int]) -> None:
    always = ("short-0", "short-1")
    panels = make_panels(40, size=20, num_fresh=1, batch_size=batch_size, always=always)
    documents = panels.of(3)
    blocks = panels.blocks(documents, looks)
    assert len(blocks) == len(looks)
    read: list[str] = []
    for block, look in zip(blocks, looks, strict=True):
        read += [document for batch in block for document in batch]
        assert sorted(read) == sorted(documents[:look])
    batches = [batch for block in blocks for batch in block]
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert all(len({document in always for document in batch}) == 1 for batch in batches)


def test_batches_are_full_but_for_the_last() -> None:
    assert batches_of(["a", "b", "c", "d", "e"], 2) == [("a", "b"), ("c", "d"), ("e",)]
    assert batches_of([], 2) == []


@pytest.mark.parametrize("batch_size", [1, 3, 100])
@pytest.mark.parametrize("looks", [[22], [4, 8, 16, 22], [20, 22]])
def test_gradients_are_asked_for_document_by_document_in_the_order_of_batches(
    batch_size: int, looks: list[int]
) -> None:
    panels = make_panels(40, size=20, num_fresh=1, batch_size=batch_size, always=("short-0", "short-1"))
    documents = panels.of(3)
    blocks = panels.blocks(documents, looks, with_gradient=True)
    assert {len(batch) for block in blocks for batch in block} == {1}
    together = panels.blocks(documents, looks)
    for block, other in zip(blocks, together, strict=True):
        assert [document for batch in block for document in batch] == [name for batch in other for name in batch]


def speed(**batch_sizes: int) -> WorkerSpeed:
    return WorkerSpeed("GPU", 1e12, {int(length[1:]): size for length, size in batch_sizes.items()})


def test_a_batch_is_no_larger_than_the_slowest_worker_wants() -> None:
    speeds = [speed(t128=16, t4096=2), speed(t128=4, t4096=1), speed(t128=8, t4096=4)]
    assert common_batch_size(speeds, 128) == 4
    assert common_batch_size(speeds, 4096) == 1
    assert common_batch_size(speeds[:1], 4096) == 2


def test_documents_of_a_length_that_a_worker_did_not_measure_go_one_by_one() -> None:
    assert common_batch_size([speed(t128=16), speed()], 128) == 1
    assert common_batch_size([speed(t128=16)], 256) == 1
    assert common_batch_size([], 128) == 1
