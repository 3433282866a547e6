"""The summary, and who wins."""

import json
import math
from dataclasses import replace
from typing import Literal

import pytest

from results.speed import Speed
from results.summary import MethodResult, ParetoPoint, Summary, best_formula, best_result, heldout_gain

NAN = math.nan


def result(
    name: str,
    heldout: float,
    *,
    kind: Literal["formula", "searched"] = "formula",
    temperature: float = 1.0,
    search: float = 2.0,
    original: float = 1.1,
    is_picked: bool = False,
) -> MethodResult:
    return MethodResult(
        name=name,
        kind=kind,
        critical_dim=7 if kind == "searched" else None,
        attention_temperature=temperature,
        search_perplexity=search,
        heldout_perplexity=heldout,
        original_perplexity=original,
        is_picked=is_picked,
    )


METHODS = (
    result("none", 80.0),
    result("yarn", 9.5, temperature=1.1386),
    result("yarn", 9.0, temperature=1.118),
    result("longrope2-search", 6.25, kind="searched", temperature=1.118),
    result("broken", NAN, kind="searched"),
)


FRONT = (
    ParetoPoint(name="yarn", attention_temperature=1.118, long_perplexity=1.5, short_ratio=1.25, is_knee=False),
    ParetoPoint(name="none", attention_temperature=1.0, long_perplexity=80.0, short_ratio=1.0, is_knee=True),
)


def summary(*methods: MethodResult, front: tuple[ParetoPoint, ...] = ()) -> Summary:
    return Summary(
        model="models/tiny",
        original_length=256,
        target_length=1024,
        seed=3,
        num_document_forwards=1200,
        num_search_forwards=900,
        seconds=61.5,
        run_directory="runs/one",
        methods=methods,
        front=front,
    )


def test_what_validation_picked_wins_although_another_is_luckier_on_the_heldout_documents() -> None:
    lucky = result("lucky", 5.0, kind="searched")
    picked = result("picked", 6.25, kind="searched", is_picked=True)
    assert best_result([*METHODS, lucky, picked]) is picked
    assert heldout_gain([*METHODS, lucky, picked]) == pytest.approx(0.1659563, abs=1e-7)  # as below, by hand


@pytest.mark.parametrize("heldout", [9.0, 9.5, 80.0, NAN])
def test_a_pick_that_beats_no_formula_is_overruled_by_the_best_formula(heldout: float) -> None:
    methods = [*METHODS, result("picked", heldout, kind="searched", is_picked=True)]
    assert best_result(methods) is METHODS[2]
    assert heldout_gain(methods) == 0.0


def test_a_pick_is_compared_with_formulas_at_both_lengths_where_it_is_used_at_both() -> None:
    # By hand: ln 6 + ln 1.5 = ln 9 is above ln 8 + ln 1.1 = ln 8.8, although 6 is below 8
    methods = [
        result("picked", 6.0, kind="searched", original=1.5, is_picked=True),
        result("yarn", 8.0, original=1.1),
        result("none", 80.0, original=1.0),
    ]
    assert best_result(methods).name == "picked"
    assert best_result(methods, both_lengths=True).name == "yarn"
    assert summary(*methods).winner == "picked"
    assert summary(*methods, front=FRONT).winner == "yarn"
    assert best_formula(methods, both_lengths=True).name == "yarn"


def test_the_gain_at_both_lengths_is_that_of_the_sums() -> None:
    # By hand: 1 - (0.5 + 0.25) / (0.75 + 0.25)
    methods = [
        result("picked", math.exp(0.5), kind="searched", original=math.exp(0.25), is_picked=True),
        result("yarn", math.exp(0.75), original=math.exp(0.25)),
    ]
    assert summary(*methods, front=FRONT).gain == pytest.approx(0.25, rel=1e-12)


def test_the_gap_is_the_loss_that_the_search_documents_hide() -> None:
    assert result("found", math.exp(1.25), search=math.exp(0.5)).gap == pytest.approx(0.75, rel=1e-12)
    assert result("found", math.exp(0.5), search=math.exp(1.25)).gap == pytest.approx(-0.75, rel=1e-12)
    assert math.isnan(result("found", NAN).gap)
    assert math.isnan(result("found", 2.0, search=NAN).gap)


def test_without_a_pick_the_lowest_heldout_perplexity_wins_whatever_the_search_documents_say() -> None:
    better_on_seen = result("overfit", 7.0, kind="searched", search=1.01)
    assert best_result([*METHODS, better_on_seen]).name == "longrope2-search"


@pytest.mark.parametrize("methods", [METHODS, METHODS[::-1]])
def test_nan_never_wins_wherever_it_stands(methods: tuple[MethodResult, ...]) -> None:
    assert best_result(methods).name == "longrope2-search"


def test_a_formula_wins_a_draw() -> None:
    assert best_result([result("found", 2.0, kind="searched"), result("yarn", 2.0)]).name == "yarn"


def test_the_best_formula_comes_with_its_best_temperature() -> None:
    best = best_formula(METHODS)
    assert (best.name, best.attention_temperature) == ("yarn", 1.118)


def test_the_gain_compares_losses_in_nats() -> None:
    methods = [result("yarn", math.exp(1.0)), result("found", math.exp(0.75), kind="searched")]
    assert heldout_gain(methods) == pytest.approx(0.25, rel=1e-12)


def test_the_gain_at_the_measured_figures() -> None:
    # 1 - ln 6.25 / ln 9 = 1 - 1.8325815 / 2.1972246, by a pocket calculator
    assert heldout_gain(METHODS) == pytest.approx(0.1659563, abs=1e-7)


def test_a_formula_that_wins_gains_nothing_even_without_any_loss_left() -> None:
    assert heldout_gain([result("found", 1.0, kind="searched"), result("yarn", 1.0)]) == 0.0


def test_without_a_measured_formula_there_is_no_gain() -> None:
    found, yarn = result("found", 2.0, kind="searched"), result("yarn", 3.0, original=NAN)
    assert math.isnan(heldout_gain([found, result("yarn", NAN)]))
    assert math.isnan(heldout_gain([found, yarn], both_lengths=True))


def test_the_json_has_what_a_reader_looks_for() -> None:
    document = json.loads(summary(*METHODS).to_json())
    assert document["winner"] == "longrope2-search"
    assert document["gain"] == pytest.approx(0.1659563, abs=1e-7)
    assert document["gap"] == pytest.approx(math.log(6.25 / 2.0), rel=1e-12)
    assert document["front"] == []
    assert (document["seed"], document["num_document_forwards"], document["seconds"]) == (3, 1200, 61.5)
    assert [method["name"] for method in document["methods"]] == [method.name for method in METHODS]
    assert document["methods"][3] == {
        "name": "longrope2-search",
        "kind": "searched",
        "critical_dim": 7,
        "attention_temperature": 1.118,
        "search_perplexity": 2.0,
        "validation_perplexity": None,
        "heldout_perplexity": 6.25,
        "original_perplexity": 1.1,
        "is_picked": False,
    }


def test_the_front_is_in_the_json_and_comes_back() -> None:
    written = summary(*METHODS[:4], front=FRONT)
    assert json.loads(written.to_json())["front"][1] == {
        "name": "none",
        "attention_temperature": 1.0,
        "long_perplexity": 80.0,
        "short_ratio": 1.0,
        "is_knee": True,
    }
    assert Summary.from_json(written.to_json()).front == FRONT


def test_a_gap_that_is_unknown_is_null() -> None:
    assert json.loads(summary(result("yarn", 2.0, search=NAN)).to_json())["gap"] is None


def test_json_has_null_for_what_is_no_finite_number() -> None:
    text = summary(*METHODS, result("endless", math.inf)).to_json()
    assert "NaN" not in text
    assert "Infinity" not in text
    heldout = [method["heldout_perplexity"] for method in json.loads(text)["methods"]]
    assert heldout == [80.0, 9.5, 9.0, 6.25, None, None]


def test_a_summary_comes_back_from_json_as_it_was() -> None:
    written = summary(*(replace(method, validation_perplexity=7.5, is_picked=True) for method in METHODS[:4]))
    assert Summary.from_json(written.to_json()) == written


def test_what_the_workers_computed_is_in_the_json_and_comes_back() -> None:
    computed = Speed(device="a GPU", document_flops=6e15, flops_per_second=5e14, ceiling=8e14, peak_bytes=4 * 10**10)
    written = replace(summary(*METHODS[:4]), speed=computed)
    document = json.loads(written.to_json())
    assert document["speed"] == {
        "device": "a GPU",
        "document_flops": 6e15,
        "flops_per_second": 5e14,
        "ceiling": 8e14,
        "peak_bytes": 40_000_000_000,
        "share": 0.625,
    }
    assert Summary.from_json(written.to_json()) == written


def test_a_summary_of_version_2_says_nothing_of_what_was_computed() -> None:
    document = json.loads(summary(*METHODS[:4]).to_json())
    del document["speed"]
    assert Summary.from_json(json.dumps({**document, "schema_version": 2})).speed == Speed()


def test_a_perplexity_that_is_missing_comes_back_as_nan() -> None:
    read = Summary.from_json(summary(*METHODS).to_json())
    assert math.isnan(read.methods[4].heldout_perplexity)
    assert read.methods[0].critical_dim is None


def test_no_winner_is_an_error() -> None:
    message = r"^a winner must have a held-out perplexity, got none from 2 results\. Look for .*$"
    with pytest.raises(ValueError, match=message):
        best_result([result("one", NAN), result("two", NAN)])
    with pytest.raises(ValueError, match=message):
        summary(result("one", NAN), result("two", NAN))


def test_no_formula_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"^a winner must have a held-out perplexity, got none from 0 results\. .*$"):
        best_formula([result("found", 2.0, kind="searched")])


@pytest.mark.parametrize("text", ["", "{", "not json"])
def test_text_that_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"^a summary must be JSON, got something else: .*\. Was the file cut\?$"):
        Summary.from_json(text)


@pytest.mark.parametrize(("text", "found"), [("[]", "None"), ("{}", "None"), ('{"schema_version": 1}', "1")])
def test_another_schema_version_is_refused(text: str, found: str) -> None:
    with pytest.raises(ValueError, match=rf"^a summary must have schema version 2 or 3, got {found}\. .*$"):
        Summary.from_json(text)


@pytest.mark.parametrize(
    "change", [{"methods": None}, {"methods": ["yarn"]}, {"colour": "red"}, {"methods": [{}]}, {"front": [{}]}]
)
def test_other_keys_are_refused(change: dict[str, object]) -> None:
    document = {**json.loads(summary(*METHODS).to_json()), **change}
    with pytest.raises(ValueError, match=r"^a summary must have the keys that Ropewalk writes, got a fault: .*$"):
        Summary.from_json(json.dumps(document))


def test_a_missing_key_is_refused() -> None:
    document = json.loads(summary(*METHODS).to_json())
    del document["methods"]
    with pytest.raises(ValueError, match=r"^a summary must have the keys that Ropewalk writes, got a fault: 'methods'"):
        Summary.from_json(json.dumps(document))
