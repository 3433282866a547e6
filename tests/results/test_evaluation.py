"""Scores of an evaluation: nothing lost by a kill, sums and counts that a table by hand has too."""

import resource
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from results.evaluation import SCORES, SampleScore, mean_scores
from results.row_store import RowStore

LINES, TABLE = "scores.jsonl", "scores.parquet"
SCORE = SampleScore(
    contender="yarn",
    candidate="0123456789abcdef",
    task="passkey",
    sample="sample-0",
    length=1024,
    depth=0.5,
    score=1.0,
    text="12345\n<b>é</b>",
    num_generated=8,
    seconds=0.25,
)


def numbered(number: int, **changes: object) -> SampleScore:
    return replace(SCORE, sample=f"sample-{number}", **changes)  # type: ignore[arg-type]


def test_what_was_added_is_there_in_its_order_after_a_kill(tmp_path: Path) -> None:
    scores = [numbered(0), numbered(1, depth=None, score=0.25), numbered(2, text="")]
    RowStore(tmp_path, SCORES, SampleScore).add(scores[:1])
    RowStore(tmp_path, SCORES, SampleScore).add(scores[1:])
    assert RowStore(tmp_path, SCORES, SampleScore).recover() == scores
    assert len({score.key for score in scores}) == 3
    assert replace(SCORE, contender="none").key != SCORE.key  # two formulas may be the same factors


def test_a_torn_line_is_cut_off_and_the_next_score_follows_the_last_whole_one(tmp_path: Path) -> None:
    store = RowStore(tmp_path, SCORES, SampleScore)
    store.add([numbered(0)])
    begun = (tmp_path / LINES).stat().st_size
    store.add([numbered(1), numbered(2)])
    whole = (tmp_path / LINES).read_bytes()
    for num_bytes in range(begun, len(whole)):  # of the two, which belong together, none stays
        (tmp_path / LINES).write_bytes(whole[:num_bytes])
        assert RowStore(tmp_path, SCORES, SampleScore).recover() == [numbered(0)]
        store.add([numbered(2)])
        assert RowStore(tmp_path, SCORES, SampleScore).recover() == [numbered(0), numbered(2)]


def test_rows_that_do_not_fit_on_the_disk_leave_none_of_them(tmp_path: Path) -> None:
    store = RowStore(tmp_path, SCORES, SampleScore)
    store.add([numbered(0)])
    size = (tmp_path / LINES).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size * 5 // 2, hard))  # room for one more and a half
    try:
        with pytest.raises(OSError, match=LINES):
            store.add([numbered(1), numbered(2)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (tmp_path / LINES).stat().st_size == size
    assert store.recover() == [numbered(0)]


def test_an_evaluation_without_scores_is_an_empty_table(tmp_path: Path) -> None:
    assert RowStore(tmp_path, SCORES, SampleScore).recover() == []
    assert list(RowStore(tmp_path, SCORES, SampleScore).finish().columns) == list(SCORE.__dataclass_fields__)
    assert pd.read_parquet(tmp_path / TABLE).empty


def test_the_table_holds_every_score_and_its_means_are_those_by_hand(tmp_path: Path) -> None:
    store = RowStore(tmp_path, SCORES, SampleScore)
    store.add([numbered(0), numbered(1, score=0.5), numbered(0, length=2048, score=0.0)])
    store.add([numbered(0, contender="none", candidate="f" * 16, score=0.25)])
    frame = store.finish()
    pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / TABLE), frame)
    rows = mean_scores(frame).itertuples(index=False, name=None)
    assert list(rows) == [
        ("yarn", "passkey", 1024, 1.5, 2, 0.75),
        ("yarn", "passkey", 2048, 0.0, 1, 0.0),
        ("none", "passkey", 1024, 0.25, 1, 0.25),
    ]


def test_an_answer_without_a_score_is_no_mean_of_the_others(tmp_path: Path) -> None:
    store = RowStore(tmp_path, SCORES, SampleScore)
    store.add([numbered(0), numbered(1, score=None), numbered(0, task="vt")])
    means = mean_scores(store.finish()).set_index("task")
    assert means["count"].to_dict() == {"passkey": 2, "vt": 1}
    assert means["mean"].isna().to_dict() == {"passkey": True, "vt": False}


@pytest.mark.parametrize("line", ["{}", "[1]", "no JSON", '[{"contender": "x"}]'])
def test_a_line_that_is_no_score_is_refused_in_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / LINES).write_text(line + "\n")
    with pytest.raises(ValueError, match=r"^\S*scores\.jsonl must hold the scores that Ropewalk writes, got a line"):
        RowStore(tmp_path, SCORES, SampleScore).recover()
