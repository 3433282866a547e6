"""Engines' own packages, in a folder that ROPEWALK_ENGINE_PACKAGES names: what was read in their sources, run."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest

from results.export.engine import Mode, SourceModel
from results.export.engines import ENGINES
from results.parity import ParityRow
from rope.factors import RescaleFactors
from tests.workers.parity.rotations import BASE, ORIGINAL, ROTARY_DIM, TARGET, factors_of
from workers.parity.engines import PARITY_ENGINES
from workers.parity.model_config import made_up_config
from workers.parity.packages import unzipped_packages
from workers.parity.verification import verify_engine, windows

FOLDER = os.environ.get("ROPEWALK_ENGINE_PACKAGES", "")
pytestmark = [
    pytest.mark.skipif(not FOLDER, reason="ROPEWALK_ENGINE_PACKAGES names no folder of unzipped wheels"),
    pytest.mark.timeout(600),
]

INSIDE, BORDER, WHOLE = ORIGINAL, ORIGINAL + 1, TARGET


def verified(name: str, mode: Mode, factors: RescaleFactors) -> list[ParityRow]:
    engine, folder = PARITY_ENGINES[name], Path(FOLDER).absolute()
    packages = unzipped_packages(engine.package, engine.distribution, folder)
    if not packages:
        pytest.skip(f"no {engine.package} in {FOLDER}")
    config = made_up_config(engine.architecture, rotary_dim=ROTARY_DIM, base=BASE, original_length=ORIGINAL)
    model = SourceModel(name="M", config=config, model_type=engine.architecture, partial_rotary_factor=None)
    exporter = ENGINES[name].export
    assert exporter is not None
    files = {file: json.loads(text) for file, text in exporter(factors, mode, model).files.items()}
    overrides: dict[str, object] = next(
        (entries for file, entries in files.items() if file.endswith("overrides.json")), {}
    )
    return verify_engine(
        name,
        engine,
        packages[0],
        factors,
        config=files.get("config.json", config),
        overrides=overrides,
        expected=windows(factors, mode, config, scaling="default"),
        folder=folder,
    )


def faulty(rows: Sequence[ParityRow]) -> list[tuple[str, int | None]]:
    assert not [row.verdict for row in rows if row.verdict.startswith("not verified")]
    return [(row.setting, row.num_tokens) for row in rows if row.differs]


# Of each engine: the inputs at which it is known to rotate otherwise than it should with both lists
DUAL = {
    "vllm": [(f"--max-model-len {TARGET}", INSIDE)],
    "sglang": [("", BORDER)],
    "mlx": [("", INSIDE)],
    "exllamav2": [(f"-l {TARGET}", INSIDE)],
    "exllamav3": [("", INSIDE)],
    "onnxruntime-genai": [],
}
PINNED = {
    "vllm": [],
    "sglang": [("", BORDER)],
    "mlx": [],
    "exllamav2": [(f"-l {ORIGINAL}", INSIDE)],  # computes temperature 1 for a short load
    "exllamav3": [],
    "onnxruntime-genai": [],
}


@pytest.mark.parametrize("name", DUAL)
def test_an_engine_rotates_as_we_do_but_where_its_source_says(name: str) -> None:
    assert faulty(verified(name, "dual", factors_of())) == DUAL[name]


@pytest.mark.parametrize("name", PINNED)
def test_pinned_factors_are_right_wherever_the_engine_allows(name: str) -> None:
    assert faulty(verified(name, "pinned", factors_of())) == PINNED[name]


def test_the_border_row_of_sglang_is_named() -> None:
    border = verified("sglang", "dual", factors_of())[1]
    assert border.factors == "short"
    assert f"position {ORIGINAL} is rotated as position 0" in border.verdict
