"""The table that ends a run."""

import math
from dataclasses import replace
from io import StringIO

import pytest
from rich.console import Console

from results.summary import MethodResult, ParetoPoint, Summary
from results.table import front_table, results_table, to_string


def result(name: str, heldout: float, temperature: float = 1.0, critical_dim: int | None = None) -> MethodResult:
    return MethodResult(
        name=name,
        kind="searched" if critical_dim else "formula",
        critical_dim=critical_dim,
        attention_temperature=temperature,
        search_perplexity=heldout - 0.5,
        validation_perplexity=5.5 if critical_dim else math.nan,
        heldout_perplexity=heldout,
        original_perplexity=1.0625,
        is_picked=critical_dim is not None,
    )


SUMMARY = Summary(
    model="models/tiny",
    original_length=256,
    target_length=1024,
    seed=0,
    num_document_forwards=100,
    num_search_forwards=60,
    seconds=1.0,
    run_directory="runs/one",
    methods=(
        result("none", 123456.0),
        result("broken[red]", math.nan),
        result("yarn", 9.5, 1.1386),
        result("longrope2-search", 6.25, 1.118, critical_dim=7),
        result("yarn", 9.0, 1.118),
    ),
)


def rows(text: str) -> list[list[str]]:
    """Return the words of the methods' rows."""
    body = text.split("─\n", 1)[1].split("Lower is better")[0]
    return [line.split() for line in body.splitlines() if line.strip()]


def test_rows_are_sorted_by_heldout_perplexity_and_the_winner_is_marked() -> None:
    assert rows(to_string(SUMMARY)) == [
        # the gap by a pocket calculator: ln(6.25 / 5.75) = 0.0834, ln(9 / 8.5) = 0.0572, ln(9.5 / 9) = 0.0541
        ["*", "longrope2-search", "7", "1.1180", "5.7500", "5.5000", "6.2500", "+0.083", "1.0625"],
        ["yarn", "-", "1.1180", "8.5000", "-", "9.0000", "+0.057", "1.0625"],
        ["yarn", "-", "1.1386", "9.0000", "-", "9.5000", "+0.054", "1.0625"],
        ["none", "-", "1.0000", "1.235e+05", "-", "1.235e+05", "+0.000", "1.0625"],
        ["broken[red]", "-", "1.0000", "-", "-", "-", "-", "1.0625"],
    ]


def test_the_header_and_the_caption_say_how_to_read_it() -> None:
    words = " ".join(to_string(SUMMARY).split())
    assert "Perplexity of the needles' answers at 1024 tokens (original 256)" in words
    assert "* marks the winner: what the validation documents chose among the searched, if it beats every" in words
    assert "Gap: loss on held-out minus loss on search documents, nats." in words
    assert "served with a window switch, every method is there what none is at temperature 1." in words
    for header in (
        "method",
        "crit. tempe- search validation held-out original",
        "dim. rature documents documents documents gap length",
    ):
        assert header in words


def test_it_fits_80_columns_without_folding_a_row() -> None:
    assert max(len(line) for line in to_string(SUMMARY).splitlines()) <= 80
    assert len(rows(to_string(SUMMARY))) == len(SUMMARY.methods)


def test_a_long_name_is_folded_and_not_cut() -> None:
    name = "a-method-with-a-name-that-is-longer-than-its-column"
    text = to_string(replace(SUMMARY, methods=(result(name, 2.0),)))
    assert max(len(line) for line in text.splitlines()) <= 80
    assert "".join(row[0] for row in rows(text.replace("*", " "))) == name


@pytest.mark.parametrize("variable", ["FORCE_COLOR", "COLUMNS"])
def test_text_has_no_control_codes_whatever_the_environment(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    plain = to_string(SUMMARY)
    monkeypatch.setenv(variable, "40")
    assert to_string(SUMMARY) == plain
    assert all(character.isprintable() or character == "\n" for character in plain)
    assert not any(line.endswith(" ") for line in plain.splitlines())


def test_a_console_without_a_terminal_prints_no_control_codes() -> None:
    file = StringIO()
    Console(file=file, width=80, force_terminal=False).print(results_table(SUMMARY))
    assert "\x1b" not in file.getvalue()


def test_a_terminal_shows_the_winner_in_bold() -> None:
    file = StringIO()
    Console(file=file, width=80, force_terminal=True, color_system="standard").print(results_table(SUMMARY))
    winner = next(line for line in file.getvalue().splitlines() if "longrope2-search" in line)
    assert "\x1b[1m" in winner


FRONT = (
    ParetoPoint(
        name="longrope2-search", attention_temperature=1.118, long_perplexity=1.5, short_ratio=1.25, is_knee=False
    ),
    ParetoPoint(name="yarn", attention_temperature=1.1386, long_perplexity=2.0, short_ratio=1.125, is_knee=True),
    ParetoPoint(name="none", attention_temperature=1.0, long_perplexity=123456.0, short_ratio=1.0, is_knee=False),
)


def test_the_front_is_a_table_of_its_own_with_the_knee_marked() -> None:
    file = StringIO()
    Console(file=file, width=80, force_terminal=False).print(front_table(replace(SUMMARY, front=FRONT)))
    text = file.getvalue()
    assert max(len(line) for line in text.splitlines()) <= 80
    body = text.split("─\n", 1)[1].split("No candidate is better")[0]
    assert [line.split() for line in body.splitlines() if line.strip()] == [
        ["longrope2-search", "1.1180", "1.5000", "1.2500"],
        ["K", "yarn", "1.1386", "2.0000", "1.1250"],
        ["none", "1.0000", "123456.0000", "1.0000"],
    ]
    words = " ".join(text.split())
    assert "attention perplexity at perplexity at original" in words
    assert "K marks the knee: the point farthest below the line between the front's ends" in words
