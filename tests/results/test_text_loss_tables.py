"""Tables of text losses and retention, computed by hand."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from math import exp, sqrt
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from results.evaluation import RETENTION, TEXT_LOSSES, Retention, TextLoss
from results.row_store import Row, RowStore
from results.text_loss_tables import MIN_BUCKET_TOKENS, by_context, perplexities, power_laws, retained

ALPHA, BETA, GAMMA = 25.4, 0.45, 1.56
"""Of Llama 2 7B, arXiv:2309.16039, section on the scaling of the loss with context."""
LOSS = TextLoss(
    contender="yarn",
    candidate="0123456789abcdef",
    form="sliding",
    length=8,
    stride=2,
    text="text-0",
    num_text_tokens=16,
    sum_nll=30.0,
    num_tokens=15,
    weighted_loss=30.0,
    weight=15.0,
    first_contexts=[1, 2, 4],
    last_contexts=[1, 3, 7],
    bucket_sums=[4.0, 6.0, 20.0],
    bucket_counts=[1, 2, 12],
    seconds=0.5,
)
OTHER = replace(
    LOSS,
    text="text-1",
    sum_nll=25.0,
    num_tokens=5,
    weighted_loss=25.0,
    weight=5.0,
    first_contexts=[2, 4],
    last_contexts=[3, 7],
    bucket_sums=[8.0, 17.0],
    bucket_counts=[1, 4],
)
MOVED = Retention(
    contender="yarn",
    candidate="0123456789abcdef",
    serving="pinned",
    length=8,
    text="text-0",
    largest_difference=0.5,
    sum_divergence=0.25,
    num_same_top=6,
    num_positions=8,
    seconds=0.5,
)


def frame_of(rows: Sequence[Row]) -> pd.DataFrame:
    return pd.DataFrame([asdict(row) for row in rows])


def test_the_loss_of_several_texts_is_that_of_all_their_windows_and_then_the_form_takes_its_figure() -> None:
    rows = [LOSS, OTHER, replace(LOSS, form="longlora", weight=60.0), replace(LOSS, form="temp-lora", length=16)]
    found = perplexities(frame_of(rows))
    assert found[["contender", "form", "length", "num_tokens", "num_texts"]].values.tolist() == [
        ["yarn", "sliding", 8, 20, 2],
        ["yarn", "longlora", 8, 15, 1],
        ["yarn", "temp-lora", 16, 15, 1],
    ]
    # (30 + 25) / (15 + 5) nats; 30 / 60 nats; a perplexity of 30 / 15
    assert found["perplexity"].tolist() == pytest.approx([exp(2.75), exp(0.5), 2.0])


def test_losses_by_context_are_sums_over_texts_whatever_buckets_each_fills() -> None:
    rows = [replace(OTHER, contender="zero"), replace(LOSS, contender="zero"), LOSS]
    found = by_context(frame_of(rows))
    assert found["contender"].tolist() == ["zero"] * 3 + ["yarn"] * 3
    assert found["first_context"].tolist() == [1, 2, 4] * 2
    assert found["last_context"].tolist() == [1, 3, 7] * 2
    assert found["num_tokens"].tolist() == [1, 3, 16, 1, 2, 12]
    assert found["loss"].tolist() == pytest.approx([4 / 1, 14 / 3, 37 / 16, 4 / 1, 6 / 2, 20 / 12])
    assert found["middle_context"].tolist() == pytest.approx([1.0, sqrt(6), sqrt(28)] * 2)


def test_tables_of_rows_that_were_stored_are_those_of_the_rows(tmp_path: Path) -> None:
    losses = [LOSS, replace(OTHER, sum_nll=None, weighted_loss=None, bucket_sums=[8.0, None]), bent("yarn", 64)]
    moves = [MOVED, replace(MOVED, text="text-1", largest_difference=None, sum_divergence=None)]
    for name, kind, rows in ((TEXT_LOSSES, TextLoss, losses), (RETENTION, Retention, moves)):
        store: RowStore[Row] = RowStore(tmp_path, name, kind)
        store.add(rows)
        store.finish()
    stored = pd.read_parquet(tmp_path / f"{TEXT_LOSSES}.parquet")
    for table in (perplexities, by_context, power_laws):
        pd.testing.assert_frame_equal(table(stored), table(frame_of(losses)))
    stored = pd.read_parquet(tmp_path / f"{RETENTION}.parquet")
    pd.testing.assert_frame_equal(retained(stored), retained(frame_of(moves)))


def test_a_loss_that_is_not_finite_is_never_averaged_away() -> None:
    rows = [LOSS, replace(OTHER, sum_nll=None, weighted_loss=None, bucket_sums=[8.0, None])]
    assert perplexities(frame_of(rows))["perplexity"].isna().tolist() == [True]
    assert by_context(frame_of(rows))["loss"].isna().tolist() == [False, False, True]
    assert perplexities(frame_of(rows[1:]))["perplexity"].isna().tolist() == [True]  # a column of None alone


def test_a_perplexity_too_large_for_a_float_is_none() -> None:
    rows = [replace(LOSS, weighted_loss=800.0, weight=1.0)]
    assert perplexities(frame_of(rows))["perplexity"].isna().tolist() == [True]


def bent(contender: str, length: int, *, num_tokens: int = 1000, gamma: float = GAMMA) -> TextLoss:
    """Losses that the published law gives at the middle of every bucket, nats summed over the bucket."""
    firsts = [2**power for power in range(length.bit_length() - 1)]
    lasts = [2 * first - 1 for first in firsts]
    middles = np.sqrt(np.array(firsts) * np.array(lasts, dtype=float))
    sums = num_tokens * ((ALPHA / middles) ** BETA + gamma)
    return replace(
        LOSS,
        contender=contender,
        length=length,
        first_contexts=firsts,
        last_contexts=lasts,
        bucket_sums=sums.tolist(),
        bucket_counts=[num_tokens] * len(firsts),
    )


def test_the_law_of_the_longest_windows_gives_back_the_parameters_behind_its_losses() -> None:
    shorter = bent("yarn", 512, gamma=3.0)
    law = power_laws(frame_of([shorter, bent("yarn", 4096), replace(shorter, form="longlora", length=8192)]))
    assert law["length"].tolist() == [4096]
    assert law["num_points"].tolist() == [12]
    assert law["reason"].tolist() == [""]
    for name, value in (("alpha", ALPHA), ("beta", BETA), ("gamma", GAMMA)):
        low, middle, high = law[[f"{name}_low", name, f"{name}_high"]].to_numpy(dtype=float)[0].tolist()
        # The data have no noise: what is left is the least squares' own end
        assert middle == pytest.approx(value, rel=1e-6)
        assert low <= middle <= high


def test_a_law_that_cannot_be_fitted_says_why() -> None:
    few = bent("few", 4096, num_tokens=MIN_BUCKET_TOKENS - 1)
    rising = replace(bent("rising", 4096), bucket_sums=[1000.0 + number for number in range(12)])
    broken = replace(bent("broken", 4096), bucket_sums=[None] * 12)
    laws = power_laws(frame_of([few, rising, broken]))
    assert laws["alpha"].isna().all()
    assert laws["reason"].tolist() == [
        "4 ranges of context with 100 scored tokens are needed, got 0; raise --lengths or --num-texts",
        "losses must fall as the context grows, got none that do. Is the model's window shorter?",
        "a loss is not finite",
    ]


def test_a_law_that_the_losses_leave_open_is_none() -> None:
    # A model without scaling, read at four times its window: the fit ends at its largest exponent
    means = [4.404, 4.167, 4.095, 4.282, 4.904]
    counts = [128, 256, 512, 1024, 6144]
    firsts = [32, 64, 128, 256, 512]
    row = replace(
        LOSS,
        length=1024,
        first_contexts=firsts,
        last_contexts=[2 * first - 1 for first in firsts],
        bucket_sums=[mean * count for mean, count in zip(means, counts, strict=True)],
        bucket_counts=counts,
    )
    laws = power_laws(frame_of([row]))
    assert laws["reason"].tolist() == ["the losses do not determine it"]
    assert laws["beta"].isna().all()


def test_there_is_no_law_without_the_sliding_form() -> None:
    assert power_laws(frame_of([replace(LOSS, form="longlora")])).empty


def test_retention_is_a_mean_over_positions_of_all_texts_and_the_largest_difference_of_any() -> None:
    longer = replace(
        MOVED, text="text-1", num_positions=24, num_same_top=24, sum_divergence=1.75, largest_difference=2.0
    )
    found = retained(frame_of([MOVED, longer, replace(MOVED, serving="switched", largest_difference=0.0)]))
    assert found["serving"].tolist() == ["pinned", "switched"]
    assert found.to_numpy().tolist()[0] == ["yarn", "pinned", 8, 2.0, 2.0 / 32, 30 / 32, 32, 2]
    assert found["largest_difference"].tolist() == [2.0, 0.0]


def test_retention_without_a_number_is_no_number() -> None:
    found = retained(frame_of([MOVED, replace(MOVED, text="text-1", largest_difference=None, sum_divergence=None)]))
    assert found[["largest_difference", "mean_divergence"]].isna().to_numpy().tolist() == [[True, True]]
    assert found["same_top"].tolist() == [0.75]
