"""The report of evaluations that are written here with the project's own files: what it says, shows and refuses."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from results.evaluation import SCORES, SampleScore
from results.measurement import candidate_key
from results.report import report_html
from results.report_parts.evaluation_plots import line_style, token_axis
from results.report_parts.evaluation_record import is_evaluation, read_evaluation
from results.report_parts.record import read_record
from results.row_store import RowStore
from results.run_directory import RunDirectory
from tests.results.evaluation_runs import FACTORS, answers, harness, kept, text_loss, write_evaluation
from tests.results.report_runs import Outline, text_of, write_run

BASIC = [
    *answers("none", "vt", 256, [1.0, 1.0]),
    *answers("none", "passkey", 256, [1.0, 1.0]),
    *answers("none", "vt", 1024, [0.0, 0.0]),
    *answers("none", "passkey", 1024, [0.0, 0.0]),
    *answers("yarn", "vt", 256, [1.0, 1.0]),
    *answers("yarn", "passkey", 256, [1.0, 1.0]),
    *answers("yarn", "vt", 1024, [1.0, 0.5]),
    *answers("yarn", "passkey", 1024, [1.0, 0.0]),
]


def everything(path: Path, **changes: object) -> Path:
    grid = [score for name in FACTORS for depth in (0.0, 1.0)
            for score in answers(name, "niah_grid", 1024, [1.0, 0.0], depth=depth)]  # fmt: skip
    window = [score for name in FACTORS for length in (256, 512)
              for score in answers(name, "passkey_window", length, [1.0], depth=0.0)]  # fmt: skip
    texts = [text_loss(name, length, 7.0, law=2.0) for name in FACTORS for length in (256, 1024)]
    retention = [kept(name, serving, moved=0.0) for name in FACTORS for serving in ("switched", "pinned")]
    settings: dict[str, object] = {
        "scores": [*BASIC, *grid, *window],
        "texts": texts,
        "retention": retention,
        "harness_scores": [harness(name, "acc,none", 0.5, 0.025) for name in FACTORS],
    }
    return write_evaluation(path, **settings | changes)  # type: ignore[arg-type]


def page_of(path: Path) -> str:
    return report_html([read_evaluation(path)])


def said(path: Path) -> str:
    return text_of(page_of(path))


def test_the_headline_and_its_table_are_those_worked_out_by_hand(tmp_path: Path) -> None:
    page = page_of(write_evaluation(tmp_path / "run", scores=BASIC))
    text = text_of(page)
    # vt (1 + 0.5) / 2 and passkey 1 / 2: 75 and 50 percent, in the mean 62.5
    assert "At 1,024 tokens yarn scores best, 62.5% in the mean of 2 tasks; none, the unscaled model, 0.0%." in text
    assert "all: mean of the 2 tasks none 100.0 0.0 yarn 100.0 62.5*" in text
    assert "vt none 100.0 0.0 yarn 100.0 75.0*" in text
    assert "Each score is the mean over 2 samples. *: longer than the factors are for." in text
    # the best is bold where contenders differ, and nowhere else
    assert re.findall(r"<td style=\"font-weight:700\">([^<]*)</td>", page) == ["62.5*", "75.0*", "50.0*"]


def test_contenders_that_score_alike_are_all_named(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "one", scores=[score for score in BASIC if score.length == 256])
    assert "At 256 tokens all contenders score alike, 100.0% in the mean of 2 tasks." in said(run)
    three = [*BASIC, *(answers("ntk", task, length, [1.0, 0.5 - 0.5 * (task == "passkey")])[number]
             for task in ("vt", "passkey") for length in (256, 1024) for number in (0, 1))]  # fmt: skip
    run = write_evaluation(tmp_path / "two", names=("none", "yarn", "ntk"), scores=three)
    assert (
        "At 1,024 tokens yarn and ntk score best, 62.5% in the mean of 2 tasks; none, the unscaled model, 0.0%."
        in said(run)
    )


def test_a_task_without_a_score_is_in_no_mean_and_a_length_not_measured_is_a_dash(tmp_path: Path) -> None:
    scores = [*BASIC, *answers("yarn", "fwe", 256, [None, 1.0]), *answers("none", "fwe", 256, [1.0])]
    text = said(write_evaluation(tmp_path / "run", scores=scores))
    assert "all: mean of the 2 tasks measured at every length none 100.0 0.0 yarn 100.0 62.5*" in text
    assert "fwe none 100.0 - yarn not finite -" in text
    assert "A dash: not measured; all has one where any of its tasks has." in text


def test_figures_of_ruler_are_those_of_its_own_arithmetic(tmp_path: Path) -> None:
    marks = {"none": {256: 0.95, 512: 0.2, 1024: 0.0}, "yarn": {256: 1.0, 512: 0.9, 1024: 0.5}}
    scores = [
        answers(name, "vt", length, [mark])[0] for name, own in marks.items() for length, mark in own.items()
    ]  # fmt: skip
    text = said(write_evaluation(tmp_path / "run", scores=scores))
    # yarn: (100 + 90 + 50) / 3, (100 + 2 * 90 + 3 * 50) / 6, (3 * 100 + 2 * 90 + 50) / 6; 90 >= 85.6; 100 >= 95
    assert "yarn 100.0 90.0 50.0* 80.0 71.7 88.3 512 256" in text
    assert "none 95.0 20.0 0.0 38.3 22.5 54.2 256 256" in text
    assert "effective, 85.6% effective, 95.0%" in text
    assert "Mean of 1 of RULER's 13 tasks: vt. Not measured at every length, and in no average: niah_single_1, " in text
    assert "the second is what none scores at 256 tokens" in text


def test_the_heat_map_says_in_each_cell_what_share_was_found(tmp_path: Path) -> None:
    scores = [
        *answers("yarn", "niah_grid", 256, [1.0, 1.0], depth=0.0),
        *answers("yarn", "niah_grid", 1024, [1.0, 0.0], depth=0.0),
        *answers("yarn", "niah_grid", 256, [0.0, 0.0], depth=0.5),
        *answers("yarn", "niah_grid", 1024, [None, 1.0], depth=0.5),
    ]
    page = page_of(write_evaluation(tmp_path / "run", names=("yarn",), scores=scores))
    assert "yarn: needles found by depth and length in tokens, percent; 2 samples a cell" in page
    # the part missed times 0.75, the strongest colour
    assert '<th scope="row">0</th><td style="--a:0.00">100</td><td style="--a:0.38">50</td>' in page
    assert '<th scope="row">0.5</th><td style="--a:0.75">0</td><td style="--a:0.75">not finite</td>' in page


def test_the_effective_window_ends_below_the_first_length_that_fails(tmp_path: Path) -> None:
    shares = {256: [1.0] * 5, 512: [1.0] + [0.0] * 4, 768: [0.0] * 5, 1024: [1.0] * 5}
    scores = [score for length, own in shares.items() for score in answers("yarn", "passkey_window", length, own)]
    scores += [score for length in shares for score in answers("none", "passkey_window", length, [0.0] * 5)]
    text = said(write_evaluation(tmp_path / "run", scores=scores))
    assert "k_max, tokens samples none below 256 5 yarn 512 5" in text
    assert "Score by task" not in text  # these passkeys are in no average


def test_perplexities_and_the_power_law_are_those_that_the_losses_were_made_of(tmp_path: Path) -> None:
    texts = [
        *(text_loss("none", length, math.log(2), text="0") for length in (256, 1024)),
        *(text_loss("none", length, math.log(8), text="1") for length in (256, 1024)),
        *(text_loss("yarn", length, math.log(3), law=2.0, text=text) for length in (256, 1024) for text in "01"),
        text_loss("yarn", 256, None, form="longlora"),
    ]
    page = page_of(write_evaluation(tmp_path / "run", texts=texts))
    text = text_of(page)
    assert "In windows of 1,024 tokens yarn has the lowest perplexity of text, 3.0000; none 4.0000." in text
    assert "none 4.0000 4.0000 yarn 3.0000 3.0000*" in text
    assert "yarn 100 (100 to 100) 0.5 (0.5 to 0.5) 2 (2 to 2)" in text
    assert "No power law could be fitted to the losses by context. none: losses must fall as the context" in text
    assert "LongLoRA's form, windows averaged whole; texts: 1 contender 256 none - yarn not finite" in text
    assert "The forms are not the same figure" in text
    drawn = re.findall(r'class="line c1 d1" d="([^"]*)"', page)
    assert max(line.count("L") for line in drawn) == 59  # the fitted curve


def test_contexts_of_too_few_tokens_are_not_shown_and_no_law_is_drawn_of_few(tmp_path: Path) -> None:
    counts = [99, 200, 200, 200, 99, 0, 0]
    texts = [replace(text_loss("yarn", length, 3.0, law=2.0), bucket_counts=counts) for length in (256, 512)]
    page = page_of(write_evaluation(tmp_path / "run", names=("yarn",), texts=texts))
    assert "Loss by context, in sliding windows of 512 tokens</figcaption>" in page
    assert "contender 16-31 32-63 64-127 yarn" in text_of(page)
    assert "yarn: 4 ranges of context with 100 scored tokens are needed, got 3" in text_of(page)


def test_retention_is_exact_or_told_in_numbers(tmp_path: Path) -> None:
    rows = [
        kept("none", "switched", moved=0.0),
        kept("yarn", "switched", moved=0.0),
        kept("yarn", "pinned", moved=1.5, text="0"),
        kept("yarn", "pinned", moved=0.0, text="1"),
    ]
    text = said(write_evaluation(tmp_path / "one", retention=rows))
    # 3.2 nats and three quarters of the tops of one text, nothing of the other, over 128 positions
    assert "yarn switched, 64 exact 0 100.00 64 pinned, 64 1.5 0.025 87.50 128" in text
    assert "Served with the window switch, every contender gives the original model's logits inside its window." in text
    rows[1] = kept("yarn", "switched", moved=None)
    text = said(write_evaluation(tmp_path / "two", retention=rows))
    assert "Served with the window switch, yarn moves the original model's logits inside its window." in text
    assert "switched, 64 not finite not finite 100.00 64" in text


def test_scores_of_the_harness_stand_with_their_errors(tmp_path: Path) -> None:
    rows = [
        harness("none", "acc,none", 0.25, 0.025),
        harness("none", "acc_norm,none", None, None),
        harness("yarn", "acc,none", 0.5, None),
    ]
    text = said(write_evaluation(tmp_path / "run", harness_scores=rows))
    assert "arc, version 1.0, 200 samples acc,none 0.2500 ± 0.0250 0.5000 acc_norm,none - -" in text
    assert "time measuring 16 s" in text  # 8 for each contender's task, however many metrics it has


def test_factors_are_drawn_where_the_run_holds_them(tmp_path: Path) -> None:
    with_factors = page_of(write_evaluation(tmp_path / "one", scores=BASIC))
    assert "Rescale factors by frequency pair" in with_factors
    assert "yarn yarn 512 1.0000" in text_of(with_factors)
    without = page_of(write_evaluation(tmp_path / "two", scores=BASIC, has_factors=False))
    assert "Rescale factors by frequency pair" not in without
    assert f"yarn - - - - {candidate_key(FACTORS['yarn'])}" in text_of(without)
    assert "longer than the factors" not in without


def test_cost_and_provenance_are_told(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", scores=BASIC, texts=[text_loss("none", 256, 1.0)])
    known = {"versions": {"torch": "2.9"}, "command": "evaluate", "accelerators": ["H200", "H200"]}
    (run / "provenance.json").write_text(json.dumps(known))
    text = said(run)
    assert "answers 16 samples generated 160 tokens texts read 1 reading tokens scored 1,400" in text
    assert "time measuring 9 s" in text  # 16 of half a second, and one
    assert "2 x H200: 0.005 GPU-hours, if all were held from start to end" in text
    assert "command evaluate torch 2.9" in text
    assert f"SHA-256 of config.yaml {(run / 'config.sha256').read_text().split()[0]}" in text


def test_an_unfinished_evaluation_is_told_as_far_as_it_came_and_is_left_as_it_is(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", scores=BASIC, is_finished=False)
    with (run / "scores.jsonl").open("ab") as lines:
        lines.write(b'{"contender": "torn')
    before = {path.name: path.read_bytes() for path in run.iterdir()}
    text = said(run)
    assert "Unfinished: it was stopped or killed; the same command goes on with it." in text
    assert f"One that had no --run-dir needs --run-dir {run}." in text
    assert "Result so far At 1,024 tokens yarn scores best" in text
    assert {path.name: path.read_bytes() for path in run.iterdir()} == before


def test_nobody_is_best_before_all_have_answered_as_much(tmp_path: Path) -> None:
    texts = [text_loss("none", 256, 1.0, text=text) for text in "01"] + [text_loss("yarn", 256, 0.5)]
    for number, scores in enumerate((BASIC[:8], BASIC[:-1])):  # none alone; yarn without one sample
        page = page_of(write_evaluation(tmp_path / f"{number}", scores=scores, texts=texts, is_finished=False))
        text = text_of(page)
        assert "At 1,024 tokens not all of the 2 contenders have answered as many samples yet." in text
        assert "In windows of 256 tokens not all of the 2 contenders have read as many texts yet." in text
        assert " best" not in text.split("Score by task")[0]
        assert re.findall(r"<td style=\"font-weight:700\">([^<]*)</td>", page) == ["75.0*"] * number


def test_a_single_contender_is_not_the_best_of_any(tmp_path: Path) -> None:
    texts = [text_loss("yarn", 256, math.log(2))]
    text = said(write_evaluation(tmp_path / "run", names=("yarn",), scores=BASIC[8:], texts=texts))
    assert "At 1,024 tokens yarn scores 62.5% in the mean of 2 tasks." in text
    assert "In windows of 256 tokens the perplexity of text is 2.0000." in text


def test_values_that_print_alike_are_alike(tmp_path: Path) -> None:
    scores = [*answers("none", "vt", 256, [0.6664]), *answers("yarn", "vt", 256, [0.6661])]
    page = page_of(write_evaluation(tmp_path / "run", scores=scores))
    assert "At 256 tokens all contenders score alike, 66.6% in the mean of 1 task." in text_of(page)
    assert 'font-weight:700">' not in page


def test_hours_are_told_only_where_every_process_had_the_same_accelerators(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", scores=BASIC)
    for names, is_told in ((["H200"], True), (["A100"], False)):
        known = {"accelerators": ["H200"], "earlier": [{"accelerators": names}]}
        (run / "provenance.json").write_text(json.dumps(known))
        assert ("GPU-hours" in said(run)) == is_told


def test_a_search_and_its_evaluation_are_one_page(tmp_path: Path) -> None:
    search = read_record(write_run(tmp_path / "search"))
    assert search.factors is not None
    run = everything(tmp_path / "evaluation")
    config = (run / "config.yaml").read_text().replace(candidate_key(FACTORS["yarn"]), candidate_key(search.factors))
    (run / "config.yaml").write_text(config)
    page = report_html([search, read_evaluation(run)])
    text = text_of(page)
    assert page.count("<article>") == 2
    assert "The winner of each run, perplexities" in text
    assert "Evaluation of tiny, evaluation: At 1,024 tokens yarn scores best" in text
    assert "yarn is the winner of this search: tiny to 1024 tokens, search." in text
    assert Outline(page).faults == []


def test_a_page_is_well_formed_and_needs_no_network_and_no_script(tmp_path: Path) -> None:
    source = page_of(everything(tmp_path / "run"))
    page = Outline(source)
    assert (page.faults, page.open) == ([], [])
    headings = [int(tag[1]) for tag, _ in page.seen if re.fullmatch(r"h\d", tag)]
    assert all(after <= before + 1 for before, after in pairwise(headings))
    assert all("scope" in attributes for tag, attributes in page.seen if tag == "th")
    images = [attributes for tag, attributes in page.seen if tag == "svg" and "aria-label" in attributes]
    assert len(images) == 5  # RULER, the effective window, perplexity, its contexts, factors
    assert not re.search(r"https?://|<script|<link|<img|url\(|@import", source)
    assert not re.search(r"\bnan\b", text_of(source))


def test_every_text_of_a_user_is_escaped(tmp_path: Path) -> None:
    hostile = '<script>alert("x")</script>&$body'
    names = ("none", hostile)
    tasks = ("vt", "passkey_window", "niah_grid")
    scores = [answers(name, task, length, [0.5], depth=0.5)[0]
              for name in names for task in tasks for length in (256, 1024)]  # fmt: skip
    run = everything(
        tmp_path / "a <b>run</b>",
        names=names,
        model=hostile,
        scores=scores,
        texts=[text_loss(name, length, 3.0) for name in names for length in (256, 1024)],
        retention=[kept(name, "switched", moved=1.0) for name in names],
        harness_scores=[harness(name, hostile, 0.5, 0.1) for name in names],
    )
    (run / "provenance.json").write_text(json.dumps({"command": hostile, "versions": {hostile: hostile}}))
    page = report_html([read_evaluation(run)] * 2)
    assert "<script" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;$body" in page
    assert Outline(page).faults == []


def test_many_contenders_tasks_and_lengths_stay_below_five_megabytes(tmp_path: Path) -> None:
    tasks = [f"task_{number}" for number in range(20)]
    names = [f"contender-{number}" for number in range(20)]
    lengths = [2**number for number in range(8, 18)]
    scores = [answers(name, task, length, [0.5])[0] for name in names for task in tasks for length in lengths]
    texts = [text_loss(name, length, 3.0, law=2.0) for name in names for length in lengths]
    run = write_evaluation(tmp_path / "run", names=names, scores=scores, texts=texts)
    assert len(report_html([read_evaluation(run)] * 4).encode()) < 5e6


def test_neighbouring_lines_differ_by_more_than_colour_and_no_two_of_the_first_dozens_are_alike() -> None:
    styles = [line_style(number) for number in range(18)]
    assert len({*styles}) == 18
    assert all(one.split()[1] != other.split()[1] for one, other in pairwise(styles[:6]))


def test_ticks_of_tokens_are_measured_lengths_with_room_between_them() -> None:
    axis = token_axis("tokens", [4096, 8192, 16384, 32768, 65536, 131072])
    assert axis.scale.is_log
    assert [text for _, text in axis.ticks] == ["4096", "8192", "16.38k", "32.77k", "65.54k", "131.1k"]
    dense = token_axis("tokens", [float(32 * number) for number in range(1, 33)], may_log=False)
    assert dense.ticks[-1] == (1024.0, "1024")
    places = [dense.scale.place(value) for value, _ in dense.ticks]
    assert all(after - before >= 0.14 for before, after in pairwise(places))
    assert token_axis("tokens", [512.0]).ticks == ((512.0, "512"),)


def test_an_empty_evaluation_is_refused(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run")
    assert is_evaluation(run)
    with pytest.raises(ValueError, match=r"must hold the rows of an evaluation, got an empty run\. Wait for its first"):
        read_evaluation(run)
    RowStore(run, SCORES, SampleScore).finish()
    with pytest.raises(ValueError, match="must hold the rows of an evaluation, got an empty run"):
        read_evaluation(run)


def test_a_search_and_a_folder_without_a_run_are_no_evaluation(tmp_path: Path) -> None:
    assert not is_evaluation(write_run(tmp_path / "search"))
    assert not is_evaluation(tmp_path)
    assert not is_evaluation(tmp_path / "nothing")
    RunDirectory.create(tmp_path / "empty", {"model": "m"}, resume=False)
    assert not is_evaluation(tmp_path / "empty")


def test_an_evaluation_of_another_version_is_refused(tmp_path: Path) -> None:
    run = write_evaluation(tmp_path / "run", scores=BASIC)
    frame = pd.read_parquet(run / "scores.parquet")
    table = pq.read_table(run / "scores.parquet")
    pq.write_table(table.replace_schema_metadata({b"ropewalk_row_version": b"0"}), run / "scores.parquet")
    with pytest.raises(ValueError, match=r"scores\.parquet must have version 1 and the columns .* got version 0"):
        read_evaluation(run)
    frame.drop(columns="depth").to_parquet(run / "scores.parquet")
    with pytest.raises(ValueError, match=r"scores\.parquet must have version 1 and the columns"):
        read_evaluation(run)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "scores.jsonl",
            '{"contender": "x"}\n',
            r"scores\.jsonl must hold the scores that Ropewalk writes, got a line with a fault",
        ),
        ("scores.jsonl", "no JSON\n", r"scores\.jsonl must hold the scores that Ropewalk writes"),
        ("contenders.json", "[]", r"contenders\.json: it must be a JSON object, got something else"),
        (
            "contenders.json",
            '{"yarn": {"schema_version": 99}}',
            r"contenders\.json: factors must be a JSON object",
        ),
        ("contenders.json", "{", r"contenders\.json: "),
        ("provenance.json", "[]", r"provenance\.json must be a JSON object, got something else"),
        ("provenance.json", '{"earlier": 1}', r"provenance\.json must be a JSON object, got something else"),
        ("provenance.json", "{", r"provenance\.json must be a JSON object, got something else"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    run = write_evaluation(tmp_path / "run", scores=BASIC, is_finished=False)
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_evaluation(run)
