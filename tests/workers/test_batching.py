"""Batches: as large as pays, and a document's loss is the same in all of them."""

from collections.abc import Callable

import pytest

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from workers.batching import ENOUGH_SECONDS, fastest_batch_size
from workers.memory import PIECE_BYTES
from workers.model import LoadedModel
from workers.scoring import NeedleScoring

# float32 sums in another order: 2^-24 over some hundred terms of losses of about 10
TOLERANCE = 1e-5

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]
Documents = list[NeedleDocument]


def timed(seconds: dict[int, float], *, most: int = 64) -> tuple[int, list[int]]:
    """Return the fastest size, and those that were tried; a size without a time does not fit."""
    tried = []

    def seconds_of(size: int) -> float:
        tried.append(size)
        if size not in seconds:
            raise MemoryError
        return seconds[size]

    return fastest_batch_size(seconds_of, most=most), tried


def test_a_batch_grows_while_each_document_gets_faster() -> None:
    # A forward takes 0.1 s for up to 8 documents, then 0.0125 s for each
    seconds = {1: 0.1, 2: 0.1, 4: 0.1, 8: 0.1, 16: 0.2, 32: 0.4, 64: 0.8}
    assert timed(seconds) == (8, [1, 2, 4, 8, 16])


def test_without_a_gain_documents_go_one_by_one() -> None:
    assert timed({1: 0.1, 2: 0.2}) == (1, [1, 2])
    # 4 % a document is not worth it, 6 % is
    assert timed({1: 0.1, 2: 0.192}) == (1, [1, 2])
    assert timed({1: 0.1, 2: 0.188, 4: 0.376}) == (2, [1, 2, 4])


def test_memory_ends_the_growth() -> None:
    assert timed({1: 0.1, 2: 0.1}) == (2, [1, 2, 4])
    assert timed({1: 0.1}) == (1, [1, 2])


@pytest.mark.parametrize(("most", "size"), [(1, 1), (2, 2), (3, 2), (4, 4), (64, 64)])
def test_there_are_no_more_documents_than_there_are(most: int, size: int) -> None:
    assert timed(dict.fromkeys((1, 2, 4, 8, 16, 32, 64, 128), 0.1), most=most)[0] == size


def test_a_document_that_keeps_the_device_busy_goes_alone() -> None:
    assert timed({1: ENOUGH_SECONDS, 2: ENOUGH_SECONDS}) == (1, [1])


def losses(scoring: NeedleScoring, factors: RescaleFactors, names: list[str]) -> list[float]:
    measured = scoring.score(factors, names)
    assert [measurement.failure for measurement in measured] == [None] * len(names)
    return [measurement.sum_nll / measurement.num_tokens for measurement in measured]


def test_a_document_has_one_loss_alone_in_a_batch_and_in_pieces(
    architecture: str,
    load: Load,
    make_factors: MakeFactors,
    documents: Documents,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loaded = load(architecture)
    assert loaded.is_trimmed
    scoring = NeedleScoring(loaded, documents)
    factors = make_factors(loaded, "yarn", 1.1)
    names = [document.id for document in documents]
    alone = [losses(scoring, factors, [name])[0] for name in names]
    assert losses(scoring, factors, names) == pytest.approx(alone, rel=TOLERANCE)
    monkeypatch.setitem(PIECE_BYTES, "cpu", 1)
    for piece_length in (16, 50):
        monkeypatch.setattr("workers.memory.MIN_PIECE", piece_length)
        assert losses(scoring, factors, names) == pytest.approx(alone, rel=TOLERANCE)
        assert losses(scoring, factors, names[:1]) == pytest.approx(alone[:1], rel=TOLERANCE)


def test_no_time_is_taken_on_a_cpu_so_that_runs_there_repeat_bit_for_bit(load: Load, documents: Documents) -> None:
    assert NeedleScoring(load("llama"), documents).speed.batch_sizes == {}
