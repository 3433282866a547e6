"""Figures of answered samples, worked out by hand from a table of two contenders."""

from math import isnan

import pandas as pd
import pytest

from needles.ruler import TASKS
from results.answer_tables import (
    Baseline,
    EffectiveWindow,
    averaged_tasks,
    effective_windows,
    ruler_baseline,
    ruler_figures,
    task_means,
)

# By contender and task: two samples at each of 256, 512 and 1,024 tokens
SCORES: dict[tuple[str, str], list[list[float | None]]] = {
    ("none", "niah_single_1"): [[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]],
    ("none", "vt"): [[0.8, 0.6], [0.2, 0.2], [0.0, 0.0]],
    ("none", "passkey"): [[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]],
    ("yarn", "niah_single_1"): [[1.0, 1.0], [1.0, 1.0], [1.0, 1.0]],
    ("yarn", "vt"): [[0.8, 0.6], [0.9, 0.9], [0.8, 0.6]],
    ("yarn", "passkey"): [[1.0, 1.0], [1.0, 1.0], [1.0, 0.0]],
}
WINDOW: dict[tuple[str, str], list[list[float | None]]] = {
    ("none", "passkey_window"): [[1.0, 0.0], [1.0, 1.0], [0.0, 0.0], [1.0, 1.0]],
    ("yarn", "passkey_window"): [[1.0, 0.0], [1.0, 1.0], [1.0, 0.0], [None, 0.0]],
}


def scores(
    values: dict[tuple[str, str], list[list[float | None]]], lengths: tuple[int, ...] = (256, 512, 1024)
) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"contender": contender, "task": task, "length": length, "score": score}
            for (contender, task), cells in values.items()
            for length, cell in zip(lengths, cells, strict=True)
            for score in cell
        ]
    )


def window_scores() -> pd.DataFrame:
    return scores(WINDOW, lengths=(128, 256, 384, 512))


def test_means_are_over_samples_and_all_is_over_tasks() -> None:
    means = task_means(scores(SCORES)).set_index(["contender", "task", "length"])["mean"]
    assert means["none", "vt", 256] == pytest.approx(0.7)
    assert means["none", "passkey", 512] == 0.0
    assert means["none", "all", 256] == pytest.approx((1.0 + 0.7 + 1.0) / 3)
    assert means["yarn", "all", 1024] == pytest.approx((1.0 + 0.7 + 0.5) / 3)
    assert len(means) == 2 * 3 * 4


def test_passkeys_of_the_window_count_neither_as_a_task_nor_in_all() -> None:
    both = pd.concat([scores(SCORES), window_scores()])
    pd.testing.assert_frame_equal(task_means(both), task_means(scores(SCORES)))
    assert ruler_figures(both) == ruler_figures(scores(SCORES))


def test_all_has_no_figure_where_an_answer_has_no_score() -> None:
    values = SCORES | {("yarn", "vt"): [[0.8, 0.6], [None, 0.9], [0.8, 0.6]]}
    means = task_means(scores(values)).set_index(["contender", "task", "length"])["mean"]
    assert isnan(means["yarn", "vt", 512])
    assert isnan(means["yarn", "all", 512])
    assert means["yarn", "all", 1024] == pytest.approx((1.0 + 0.7 + 0.5) / 3)


def test_rulers_figures_are_over_its_own_tasks_alone_in_percent() -> None:
    none, yarn = ruler_figures(scores(SCORES))
    assert (none.contender, yarn.contender) == ("none", "yarn")
    assert {length: average.score for length, average in none.averages.items()} == pytest.approx(
        {256: (100 + 70) / 2, 512: (50 + 20) / 2, 1024: 0.0}
    )
    assert none.over_lengths == pytest.approx((120 / 3, (85 + 2 * 35 + 0) / 6, (3 * 85 + 2 * 35 + 0) / 6))
    assert [average.score for average in yarn.averages.values()] == pytest.approx([85.0, 95.0, 85.0])
    for average in yarn.averages.values():
        assert average.measured == ("niah_single_1", "vt")
        assert average.left_out == tuple(task for task in TASKS if task not in ("niah_single_1", "vt"))


def test_effective_lengths_are_by_a_threshold_and_by_what_the_model_scores_in_its_own_window() -> None:
    frame = scores(SCORES)
    baseline = ruler_baseline(frame, original_length=300)
    assert baseline is not None
    assert baseline.contender == "none"
    assert baseline[1:] == pytest.approx((256, 85.0))
    none, yarn = ruler_figures(frame, baseline=baseline)
    assert (none.effective_length, none.own_effective_length) == (None, 256)
    assert (yarn.effective_length, yarn.own_effective_length) == (512, 1024)
    none, yarn = ruler_figures(frame, threshold=30.0)
    assert (none.effective_length, yarn.effective_length) == (512, 1024)
    assert none.own_effective_length is yarn.own_effective_length is None


def test_the_baseline_is_the_longest_length_inside_the_window_whoever_measured_it() -> None:
    frame = scores(SCORES)
    assert ruler_baseline(frame, original_length=512) == Baseline("none", 512, 35.0)
    assert ruler_baseline(frame, original_length=255) is None
    yarn = frame[frame["contender"] == "yarn"]
    assert ruler_baseline(yarn, original_length=256) == Baseline("yarn", 256, 85.0)
    both = pd.concat([yarn, frame[frame["contender"] == "none"].assign(contender="ntk")])
    # Short factors of its own are not the model as it was loaded
    assert ruler_baseline(both, original_length=512, with_short=["yarn"]) == Baseline("ntk", 512, 35.0)
    assert ruler_baseline(window_scores(), original_length=256) is None


def test_a_task_whose_mean_is_none_is_left_out_of_one_average_and_named_there() -> None:
    values = SCORES | {("yarn", "vt"): [[0.8, 0.6], [None, 0.9], [0.8, 0.6]]}
    _, yarn = ruler_figures(scores(values))
    assert yarn.averages[512].score == 100.0
    assert "vt" in yarn.averages[512].left_out
    assert "vt" not in yarn.averages[256].left_out
    nothing = SCORES | dict.fromkeys([("yarn", "vt"), ("yarn", "niah_single_1")], [[None, 1.0]] * 3)
    _, yarn = ruler_figures(scores(nothing))
    assert all(isnan(average.score) for average in yarn.averages.values())
    assert all(isnan(mean) for mean in yarn.over_lengths)
    assert yarn.effective_length is None


def test_a_task_that_is_not_measured_at_every_length_is_in_no_average() -> None:
    partial = scores({("yarn", "cwe"): [[0.0], [0.0]], ("none", "cwe"): [[0.0], [0.0]]}, lengths=(512, 1024))
    both = pd.concat([scores(SCORES), partial])
    assert averaged_tasks(both) == ["niah_single_1", "vt", "passkey"]
    alone, beside = (
        means[means["task"] == "all"].reset_index(drop=True) for means in map(task_means, (scores(SCORES), both))
    )
    pd.testing.assert_frame_equal(beside, alone)
    assert ruler_figures(both) == ruler_figures(scores(SCORES))
    # Nothing in common, no average
    assert ruler_figures(pd.concat([partial, scores({("yarn", "vt"): [[1.0]]}, lengths=(256,))])) == []


def test_the_effective_window_ends_before_the_first_length_at_which_too_few_passkeys_are_found() -> None:
    none, yarn = effective_windows(window_scores())
    assert none == EffectiveWindow("none", 256, (128, 256, 384, 512), 2)
    assert yarn.window == 384  # logits that are no numbers find no passkey
    assert effective_windows(scores(SCORES)) == []
