"""The precision of a run: chosen once, written down, kept; and a run whose candidates are ranked by an 8-bit copy."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import yaml

from results.run_directory import RunDirectory
from search.cli import main
from search.config import SearchConfig, resolved_config
from search.precision import with_precision
from tests.search.running import HAYSTACK, MODEL, TINY
from workers import precision
from workers.precision import Precision, choose_precision

REQUIRED: dict[str, Any] = {"model": "folder", "corpus": "noise", "target_length": 1024}


@pytest.fixture
def _old_cpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor without bfloat16."""
    (tmp_path / "cpuinfo").write_text("flags\t\t: fpu avx2\n")
    monkeypatch.setattr(precision, "CPU_INFO", tmp_path / "cpuinfo")


def test_a_precision_that_the_user_named_is_kept(tmp_path: Path) -> None:
    for name in get_args(Precision):
        config = SearchConfig(**REQUIRED, dtype=name)
        assert with_precision(config, tmp_path / "run") is config


def test_auto_is_what_this_machine_computes_in(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="search.precision")
    chosen = choose_precision("cpu")
    found = with_precision(SearchConfig(**REQUIRED, device="cpu"), tmp_path / "run")
    assert found.dtype == chosen.precision
    assert caplog.messages == [f"weights and activations are {chosen.precision}: {chosen.reason}"]


@pytest.mark.usefixtures("_old_cpu")
def test_workers_with_gpus_compute_in_bfloat16_whatever_the_driver_runs_on(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    on_gpus = SearchConfig(**REQUIRED, workers=2, gpus_per_worker=1.0)
    assert with_precision(on_gpus, tmp_path / "run").dtype == "bfloat16"
    assert with_precision(SearchConfig(**REQUIRED, workers=2), tmp_path / "run").dtype == "float32"


@pytest.mark.usefixtures("_old_cpu")
def test_a_run_that_is_taken_up_elsewhere_keeps_its_precision(tmp_path: Path) -> None:
    config = SearchConfig(**REQUIRED)
    began = resolved_config(replace(config, dtype="bfloat16"), 256, tmp_path / "run", model_fingerprint="0")
    RunDirectory.create(tmp_path / "run", began, resume=False)
    taken_up = with_precision(config, tmp_path / "run")
    assert taken_up.dtype == "bfloat16"
    RunDirectory.create(
        tmp_path / "run", resolved_config(taken_up, 256, tmp_path / "run", model_fingerprint="0"), resume=True
    )
    assert with_precision(config, tmp_path / "another").dtype == "float32"


def test_a_run_writes_down_the_precision_that_was_chosen(tmp_path: Path) -> None:
    run = search(tmp_path / "run")
    assert yaml.safe_load((run / "config.yaml").read_text())["dtype"] == choose_precision("auto").precision


def test_only_what_is_not_searched_on_is_measured_alike_with_8_bit_ranking(tmp_path: Path) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'ropewalk[quantized]'")
    exact = measured(search(tmp_path / "exact", "--dtype=float32"))
    ranked = measured(search(tmp_path / "ranked", "--dtype=float32", "--ranking-weights=int8"))
    both = exact.keys() & ranked.keys()
    assert ("yarn", 1.0693) in both
    for key in both:
        assert ranked[key]["heldout_perplexity"] == exact[key]["heldout_perplexity"]
        assert ranked[key]["search_perplexity"] != exact[key]["search_perplexity"]


def measured(run: Path) -> dict[tuple[str, float], dict[str, Any]]:
    """The formulas of a summary that were measured on all search documents, by name and attention temperature."""
    methods = json.loads((run / "summary.json").read_text())["methods"]
    return {
        (method["name"], round(method["attention_temperature"], 4)): method
        for method in methods
        if method["kind"] == "formula" and method["search_perplexity"] is not None
    }


def search(run_dir: Path, *options: str) -> Path:
    """A whole run of formulas alone on the reference model."""
    required = [f"--model={MODEL}", f"--corpus={HAYSTACK}", "--target-length=512", "--algorithm=longrope2"]
    least = ["--evolution.population-size=8", "--evolution.num-parents=2", "--evolution.num-generations=0"]
    assert main(["search", *required, *least, f"--run-dir={run_dir}", *TINY, *options]) == 0
    return run_dir
