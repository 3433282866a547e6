"""What `ropewalk export` says of the cost of long factors inside the original window."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

from results.export.huggingface import huggingface_fragment
from results.summary import MethodResult, Summary
from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.cli import main

REFERENCE = Path(__file__).parents[2] / "workers" / "reference" / "model"
WINDOW = 256


@pytest.fixture
def factors() -> RescaleFactors:
    """Factors for the reference model, at a temperature that is no formula's."""
    return METHODS["yarn"](32, 500.0, original_length=WINDOW, target_length=4 * WINDOW).with_temperature(1.2)


def export(factors_file: Path, engine: str, out: Path, *options: str) -> int:
    named = ["export", f"--factors={factors_file}", f"--to={engine}", f"--out={out}", f"--model={REFERENCE}"]
    return main([*named, *options])


def run_directory(folder: Path, factors: RescaleFactors, *, is_measured: bool = True) -> Path:
    """Return a run directory with factors and a summary whose perplexities at the original length are known."""

    def result(name: str, perplexity: float, original: float, temperature: float) -> MethodResult:
        return MethodResult(
            name=name,
            kind="formula",
            critical_dim=None,
            attention_temperature=temperature,
            search_perplexity=perplexity,
            heldout_perplexity=perplexity,
            original_perplexity=original if is_measured else math.nan,
        )

    summary = Summary(
        model="m",
        original_length=WINDOW,
        target_length=4 * WINDOW,
        seed=0,
        num_document_forwards=1,
        num_search_forwards=1,
        seconds=1.0,
        run_directory=str(folder),
        methods=(result("none", 90.0, 1.5, 1.2), result("none", 80.0, 1.25, 1.0), result("yarn", 2.0, 1.75, 1.2)),
    )
    folder.mkdir()
    factors.save(folder / "factors.json")
    (folder / "summary.json").write_text(summary.to_json(), encoding="utf-8")
    return folder


def test_pinned_says_what_a_run_measured_that_it_costs(
    tmp_path: Path, factors: RescaleFactors, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "run", factors)
    told = "inside 256 tokens cost, by needle perplexity there: 1.7500, the unscaled model 1.2500"
    for named in (run, run / "factors.json"):
        assert export(named, "transformers", tmp_path / "out", "--mode=pinned", "--force") == 0
        assert told in capsys.readouterr().out
    assert export(run, "mlx", tmp_path / "out", "--force") == 0  # always long
    assert told in capsys.readouterr().out
    assert export(run, "transformers", tmp_path / "out", "--force") == 0
    assert "needle perplexity" not in capsys.readouterr().out


def test_a_cost_that_was_not_measured_is_no_number(
    tmp_path: Path, factors: RescaleFactors, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "run", factors, is_measured=False)
    export(run, "transformers", tmp_path / "out", "--mode=pinned")
    assert "there: not measured" in capsys.readouterr().out
    other = run_directory(tmp_path / "other", factors.with_temperature(1.3))  # not those of the summary
    export(other, "transformers", tmp_path / "out", "--mode=pinned", "--force")
    assert "there: not measured" in capsys.readouterr().out


def test_factors_that_replaced_a_runs_winner_do_not_get_its_cost(
    tmp_path: Path, factors: RescaleFactors, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_directory(tmp_path / "run", factors)
    (run / "config_fragment.json").write_text(json.dumps(huggingface_fragment(factors)))
    edited = replace(factors, values=(1.5, *factors.values[1:]))
    for other in (replace(factors, method="imported"), replace(factors, critical_dim=3), edited):
        other.save(run / "factors.json")
        assert export(run, "transformers", tmp_path / "out", "--mode=pinned", "--force") == 0
        assert "there: not measured" in capsys.readouterr().out
    factors.save(run / "factors.json")
    assert export(run, "transformers", tmp_path / "out", "--mode=pinned", "--force") == 0
    assert "there: 1.7500" in capsys.readouterr().out
