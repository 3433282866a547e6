"""What a run says at its end."""

import math
from dataclasses import replace
from io import StringIO

from rich.console import Console

from results.speed import Speed
from results.summary import MethodResult, Summary
from search.verdict import cost_of_scoring, show

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
        MethodResult(
            name="yarn",
            kind="formula",
            critical_dim=None,
            attention_temperature=1.0,
            search_perplexity=math.nan,
            heldout_perplexity=2.0,
            original_perplexity=1.0,
        ),
    ),
    speed=Speed(device="a GPU", document_flops=6e15, flops_per_second=5e14, ceiling=8e14, peak_bytes=40 * 10**9),
)


def printed(summary: Summary) -> list[str]:
    file = StringIO()
    show(summary, Console(file=file, width=200, force_terminal=False))
    return file.getvalue().splitlines()


def test_the_cost_of_scoring_stands_between_the_verdict_and_the_run_directory() -> None:
    *_, verdict, cost, folder = printed(SUMMARY)
    assert verdict.startswith("The formula yarn at temperature 1.0000 wins")
    assert cost == (
        "Scoring at 1024 tokens: 6 PFLOP per document, 500 TFLOP/s per worker, 62% of a plain matmul (800 TFLOP/s on a "
        "GPU); 40 GB at most in a worker."
    )
    assert folder == "runs/one"


def test_a_run_of_which_no_cost_is_known_says_none() -> None:
    unknown = replace(SUMMARY, speed=Speed())
    assert cost_of_scoring(unknown) == ""
    assert printed(unknown)[-2].startswith("The formula yarn")
