"""The benchmark of the scorer, at its smallest on a CPU."""

import dataclasses
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.benchmarks.scoring_models import SHAPES, Job, make_documents
from tests.benchmarks.scoring_rows import TOLERANCES, Row, breakdowns, disagreements
from tests.benchmarks.scoring_ways import load_way

ROOT = Path(__file__).parents[2]
SMALLEST = ["--device", "cpu", "--layers", "1", "--repeats", "1"]
ROW = Row(shape="s", length=64, way="labels", num_documents=1, dtype="float32", seconds=(1.0,), losses=(2.0,))


def benchmark(folder: Path, *words: str, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tests.benchmarks.scoring", "--folder", str(folder), *SMALLEST, *words]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False, **options
    )


def rows_in(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((folder / "scoring.json").read_text(encoding="utf-8"))["rows"]
    return rows


@pytest.mark.parametrize(
    ("shape", "num_parameters"),
    [  # as their model cards say: 8.03, 3.82, 7.62 and 0.135 billion
        ("LLaMA3-8B", 8_030_261_248),
        ("Phi-3-mini", 3_821_079_552),
        ("Qwen2.5-7B", 7_615_616_512),
        ("SmolLM2-135M", 134_515_008),
    ],
)
def test_a_shape_has_as_many_parameters_as_the_published_model(shape: str, num_parameters: int) -> None:
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(  # type: ignore[no-untyped-call]
            SHAPES[shape].config(**SHAPES[shape].settings)
        )
    assert model.num_parameters() == num_parameters


def test_the_loss_of_a_random_model_depends_on_its_context() -> None:
    way = load_way(Job("labels", "SmolLM2-135M", None, 2, "cpu", "float32"))
    document, other = make_documents(way.model.config.vocab_size, 128, 2)
    token_ids = document.token_ids.copy()
    token_ids[:64] = other.token_ids[:64]
    loss, changed = way.losses([document, dataclasses.replace(document, token_ids=token_ids)])
    assert abs(changed - loss) > TOLERANCES["bfloat16"]


def test_different_losses_make_a_run_void() -> None:
    close = dataclasses.replace(ROW, way="ropewalk", losses=(2.0005,))
    coarse = dataclasses.replace(ROW, way="ropewalk", dtype="bfloat16", losses=(2.04,))
    far = dataclasses.replace(ROW, way="ropewalk", losses=(2.04,))
    lost = dataclasses.replace(ROW, way="ropewalk", losses=(float("nan"),))
    assert disagreements([close, coarse, ROW]) == []
    assert [len(disagreements([row, ROW])) for row in (far, lost)] == [1, 1]
    assert disagreements([far, ROW])[0].startswith("void: losses of s at 64 tokens must be within 0.001 nats/token")


def test_a_scorer_that_breaks_makes_a_run_fail_and_one_without_memory_does_not() -> None:
    broken = dataclasses.replace(ROW, way="ropewalk", seconds=(), losses=(), failure="TypeError: no")
    full = dataclasses.replace(broken, failure="not tried: 1 x 32 tokens: out of memory: no")
    refused = dataclasses.replace(broken, failure="ValueError: a document of 64 tokens must fit the memory beside")
    other = dataclasses.replace(broken, way="published")
    assert breakdowns([ROW, broken, full, refused, other]) == ["s, 1 x 64 tokens, ropewalk: TypeError: no"]


def test_all_ways_are_measured_side_by_side_and_agree(tmp_path: Path) -> None:
    run = benchmark(tmp_path, "--lengths", "64", "--profile", "--ways", "ropewalk", "labels")
    assert run.returncode == 0, run.stdout + run.stderr
    rows = rows_in(tmp_path)
    assert [row["way"] for row in rows] == ["ropewalk", "labels"]
    assert all(not row["failure"] and row["seconds"] and row["weight_bytes"] > 0 for row in rows)
    assert rows[0]["flops"] == rows[0]["useful_flops"] == rows[1]["useful_flops"] < rows[1]["flops"]
    assert "aten::" in (tmp_path / "profile-SmolLM2-135M.txt").read_text(encoding="utf-8")


@pytest.mark.slow  # half a minute each: these start several processes
def test_documents_are_given_to_the_scorer_one_and_several_at_once(tmp_path: Path) -> None:
    run = benchmark(tmp_path, "--lengths", "64", "--batch", "1", "2")
    assert run.returncode == 0, run.stdout + run.stderr
    one, two, chosen = rows_in(tmp_path)
    assert [len(row["losses"]) for row in (one, two, chosen)] == [1, 2, 2]
    assert two["losses"][0] == pytest.approx(one["losses"][0], abs=TOLERANCES["bfloat16"])


@pytest.mark.slow
def test_a_length_that_does_not_fit_is_a_row_and_the_next_is_not_tried(tmp_path: Path) -> None:
    limit = 2 * 10**9  # three processes' worth of torch fit in it, and 0.8 GB of logits in two copies do not
    run = benchmark(
        tmp_path,
        *("--ways", "ropewalk", "published", "--lengths", "64", "4096", "4160"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert run.returncode == 0, run.stdout + run.stderr
    rows = {(row["way"], row["length"]): row["failure"] for row in rows_in(tmp_path)}
    assert [rows["ropewalk", length] for length in (64, 4096, 4160)] == ["", "", ""]
    assert rows["published", 64] == ""
    assert "out of memory" in rows["published", 4096]
    assert rows["published", 4160].startswith("not tried: 1 x 4096 tokens: out of memory")
