"""The report of runs that are written here with the project's own files: what it says and shows."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest

from results.measurement import candidate_key
from results.report import report_html
from results.report_parts.depth import depth_rows
from results.report_parts.headline import gain_in_words
from results.report_parts.origins import duration
from results.report_parts.record import read_record
from results.report_parts.search_progress import (
    forwards_before,
    has_fresh_documents,
    num_forwards,
    progress_html,
)
from results.status import write_status
from results.store import read_measurements
from results.summary import ParetoPoint
from tests.results.report_runs import (
    ALL,
    LOSSES,
    NUM_DOCUMENTS,
    Outline,
    a_summary,
    candidates,
    loss_of,
    more,
    result,
    status,
    text_of,
    write_run,
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "a run")


def test_the_gain_and_the_documents_won_are_those_worked_out_by_hand(run: Path) -> None:
    text = text_of(report_html([read_record(run, candidates=candidates())]))
    # (6 * 0.1 + 2 * 0.5) / 8 = 0.2 nats: no gain over YaRN's 0.2 would be a draw, which the formula wins
    assert "The formula yarn wins: what the search chose did not beat it." in text
    assert "Measured on 8 held-out documents that neither search nor choice saw." in text


def test_a_searched_winner_is_said_with_its_gain_and_on_how_many_documents_it_is_better(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(LOSSES, "yarn", 0.4)
    run = write_run(tmp_path / "a run")
    text = text_of(report_html([read_record(run, candidates=candidates())]))
    # 0.2 nats against 0.4: half; exp(0.2) = 1.2214, exp(0.4) = 1.4918; it is better on 6 of 8
    assert "longrope2-search loses 50.0% less than the best formula, yarn, on held-out documents" in text
    assert "perplexity 1.2214 against 1.4918 at 1,024 tokens" in text
    assert "On 6 of 8 of them the winner loses less than yarn." in text


def test_depth_and_table_leave_documents_of_the_original_length_out(run: Path) -> None:
    rows = {row.shown.method: row for row in depth_rows(read_record(run, candidates=candidates()))}
    expected = [math.exp(loss_of("longrope2-search", number)) for number in range(NUM_DOCUMENTS)]
    assert rows["longrope2-search"].perplexities == pytest.approx(expected)
    assert rows["linear"].perplexities == pytest.approx([math.exp(3.0)] * NUM_DOCUMENTS)


def test_forwards_count_a_gradient_as_three(run: Path) -> None:
    frame = read_measurements(run)
    assert num_forwards(frame) == 8 * 3 + 8 + 8
    before = forwards_before(frame)
    assert [before[candidate_key(ALL[name])] for name in LOSSES] == [3, 25, 33]


def test_fresh_documents_are_told_from_a_race_that_left_some_out(run: Path) -> None:
    frame = read_measurements(run)
    keys = {candidate_key(one) for one in ALL.values()}
    is_cut = (frame["candidate"] == min(keys)) & frame["document"].str.endswith(("5", "6", "7"))
    assert not has_fresh_documents(frame[~is_cut], keys)
    other = frame["document"].where(frame["candidate"] != min(keys), "other-" + frame["document"])
    assert has_fresh_documents(frame.assign(document=other), keys)


def test_finalists_of_one_temperature_are_told_apart_by_what_they_scored(run: Path) -> None:
    record = read_record(run)
    its = record.measurements[record.measurements["candidate"] == candidate_key(ALL["longrope2-search"])]
    twin = its.assign(candidate="twin", sum_nll=its["sum_nll"] + 4)  # a nat worse on every document
    method = result("longrope2-search")
    methods = (result("yarn"), replace(method, heldout_perplexity=method.heldout_perplexity * math.e), method)
    record = replace(
        record,
        measurements=pd.concat([twin, record.measurements]),
        candidates=(replace(candidates()[0], key="twin"), *candidates()),
        summary=replace(a_summary(), methods=methods),
        factors=None,
    )
    keys = {one.result.heldout_perplexity: one.key for one in record.shown if one.result is not None}
    assert keys[methods[1].heldout_perplexity] == "twin"
    assert keys[method.heldout_perplexity] == candidate_key(ALL["longrope2-search"])


def test_methods_of_one_name_have_labels_of_their_own(run: Path) -> None:
    record = read_record(run)
    methods = (*a_summary().methods, replace(result("linear"), attention_temperature=1.5), result("linear"))
    labels = [one.label for one in replace(record, summary=replace(a_summary(), methods=methods)).shown]
    assert len({*labels}) == len(labels) == 5
    assert {"yarn", "linear, temp. 1.5", "linear, temp. 1.25 (1)", "linear, temp. 1.25 (2)"} <= {*labels}


def test_a_page_is_well_formed_and_said_to_those_who_cannot_see_it(run: Path) -> None:
    page = Outline(report_html([read_record(run, candidates=[*candidates(), more()])]))
    assert page.faults == []
    assert page.open == []
    headings = [int(tag[1]) for tag, _ in page.seen if re.fullmatch(r"h\d", tag)]
    assert headings[0] == 1
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all("scope" in attributes for tag, attributes in page.seen if tag == "th")
    images = [attributes for tag, attributes in page.seen if tag == "svg"]
    assert all("aria-label" in image or image.get("aria-hidden") == "true" for image in images)
    assert sum("aria-label" in image for image in images) == 4


def test_a_page_needs_no_network_and_no_script(run: Path) -> None:
    page = report_html([read_record(run, candidates=candidates())])
    assert "default-src 'none'" in page
    assert not re.search(r"https?://|<script|<link|<img|url\(|@import", page)


def test_every_text_of_a_user_is_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>&$body'
    run = write_run(tmp_path / "a <b>run</b>", model=hostile)
    (run / "provenance.json").write_text(json.dumps({"command": hostile, "versions": {hostile: hostile}}))
    changed = [replace(one, method=f"{one.method}{hostile}") for one in candidates()]
    page = report_html([read_record(run, candidates=changed, notes=[hostile])] * 2)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;$body" in page
    assert Outline(page).faults == []


def test_several_runs_begin_with_a_table_of_them(run: Path, tmp_path: Path) -> None:
    unfinished = write_run(tmp_path / "another", is_finished=False)
    page = report_html([read_record(run, candidates=candidates()), read_record(unfinished)])
    text = text_of(page)
    assert "The winner of each run, perplexities" in text
    assert "tiny to 1024 tokens, another 256 to 1024 tokens unfinished" in text
    assert page.count("<article>") == 2


def test_thousands_of_candidates_in_many_runs_stay_below_five_megabytes(run: Path) -> None:
    record = read_record(run)
    many = [replace(more(), key=f"{n}", perplexity=1.1 + n / 9999, values=(1.0, 1 + n / 999, 3.0, 9 - n / 999))
            for n in range(3000)]  # fmt: skip
    page = report_html([replace(record, candidates=tuple(many))] * 10)
    assert len(page.encode()) < 5e6


def test_cost_is_summed_over_all_measurements(run: Path) -> None:
    text = text_of(report_html([read_record(run)]))
    assert "document forwards 72" in text
    assert "search forwards 40, a gradient counted as three" in text
    assert "time in workers 18 s" in text  # 72 of 0.25 s
    assert "operations 72 GFLOP" in text
    assert "2 x H200: 4 GPU-hours, if all were held from start to end" in text  # two for 7200 s


@pytest.mark.parametrize(
    ("seconds", "told"),
    [(0.25, "0.25 s"), (59.96, "60 s"), (90, "1.5 min"), (3599, "1 h 00 min"), (7320, "2 h 02 min")],
)
def test_a_duration_is_said_in_its_largest_unit(seconds: float, told: str) -> None:
    assert duration(seconds) == told


@pytest.mark.parametrize(
    ("state", "reason", "told"),
    [
        ("running", None, "Unfinished: its driver was killed, 24 of about 90 documents, searching."),
        (
            "stopped",
            "stopped by its user",
            "Unfinished: it was stopped by its user, 24 of about 90 documents, searching.",
        ),
        ("failed", "no <worker>", "Unfinished: it failed (no <worker>), 24 of about 90 documents, searching."),
    ],
)
def test_an_unfinished_run_says_so_and_shows_what_there_is(
    tmp_path: Path, state: str, reason: str | None, told: str
) -> None:
    run = write_run(tmp_path / "one", is_finished=False)
    write_status(run, status(state, reason))
    page = report_html([read_record(run, candidates=candidates())])
    assert told in text_of(page)
    assert "Perplexity so far" in page
    assert "Rescale factors by frequency pair" in page
    assert Outline(page).faults == []


def test_without_a_study_the_table_is_there_and_the_reader_is_told(run: Path) -> None:
    text = text_of(report_html([read_record(run, notes=["The study could not be read."])]))
    assert "The study could not be read." in text
    assert "Perplexity of the needles' answers, by method" in text


def test_a_run_in_which_every_document_of_a_method_failed_is_shown(run: Path) -> None:
    record = read_record(run, candidates=candidates())
    lost = record.measurements["candidate"] == candidate_key(ALL["linear"])
    frame = record.measurements.assign(
        sum_nll=record.measurements["sum_nll"].where(~lost),
        num_tokens=record.measurements["num_tokens"].where(~lost, 0),
    )
    methods = (*a_summary(("longrope2-search", "yarn")).methods, replace(result("linear"), heldout_perplexity=math.nan))
    page = report_html([replace(record, measurements=frame, summary=replace(a_summary(), methods=methods))])
    assert Outline(page).faults == []
    assert not re.search(r"\bnan\b", text_of(page))


def test_a_front_is_shown_with_its_knee(run: Path) -> None:
    point = ParetoPoint(
        name="longrope2-search", attention_temperature=1.1, long_perplexity=1.5, short_ratio=1.25, is_knee=True
    )
    record = replace(read_record(run, candidates=candidates()), summary=a_summary(front=(point,)))
    assert "longrope2-search K 1.5000 1.2500 1.1000" in text_of(report_html([record]))


def test_the_best_so_far_goes_down_in_steps_and_losses_above_the_plot_are_owned_to(run: Path) -> None:
    tried = [replace(more(), key=f"{number}", perplexity=math.exp(loss))
             for number, loss in enumerate((0.5, 0.6, 0.3, *[0.4] * 200, 90.0))]  # fmt: skip
    record = read_record(run)
    frame = pd.concat([record.measurements.iloc[:1].assign(candidate=one.key) for one in tried])
    page = progress_html(replace(record, measurements=frame, candidates=tuple(tried)), most_points=9)
    line = re.search(r'class="line win" d="M([^"]*)"', page)
    assert line is not None
    places = [tuple(map(int, place.split())) for place in line[1].split("L")]
    assert [x for x, _ in places[:3]] == [places[0][0], places[1][0], places[1][0]]
    assert places[0][1] == places[1][1] < places[2][1] == places[3][1]
    assert len(places) == 4
    assert "Losses above the plot lie on its upper edge." in page


def test_no_formula_beside_the_winner_is_said() -> None:
    assert gain_in_words(a_summary(("yarn",))).startswith("The formula yarn wins. Its perplexity")
    assert gain_in_words(a_summary(("longrope2-search",))) == (
        "longrope2-search wins; no formula could be measured on the held-out documents."
    )
