import json
from pathlib import Path

import numpy as np
import pytest
import torch

from results.export.engine import SourceModel
from results.export.source_files import read_config
from results.export.transformers_config import export_transformers
from rope.factors import RescaleFactors
from tests.search.running import MODEL
from workers.model import LoadedModel, load_model
from workers.parity.logits import (
    contenders,
    exported_model,
    judge_logits,
    model_logits,
    reference_logits,
    spread_prompt,
    wanted_name,
)

IDS = list(range(20, 148))
WINDOW, TARGET = 256, 1024


def factors_of(temperature: float) -> RescaleFactors:
    values = [1.0 + 3.0 * (pair / 15) ** 1.5 for pair in range(16)]
    return RescaleFactors.from_list(
        values,
        rotary_dim=32,
        base=500.0,
        original_length=WINDOW,
        target_length=TARGET,
        attention_temperature=temperature,
    )


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(MODEL), dtype="float32", device="cpu")


def exported(factors: RescaleFactors) -> dict[str, dict[str, object]]:
    source = SourceModel(
        name="M", config=read_config(Path(MODEL) / "config.json"), model_type="llama", partial_rotary_factor=None
    )
    config: dict[str, dict[str, object]] = json.loads(export_transformers(factors, "dual", source).files["config.json"])
    return config


def verdicts(loaded: LoadedModel, config: dict[str, dict[str, object]], factors: RescaleFactors) -> list[str]:
    model = exported_model(str(MODEL), config, dtype=torch.float32, device=torch.device("cpu"))
    found = []
    for num_tokens in (WINDOW, WINDOW + 1, TARGET):
        prompt = spread_prompt(IDS, num_tokens)
        references = reference_logits(loaded, contenders(factors, native_scaling="default"), prompt)
        wanted = wanted_name(num_tokens, WINDOW, "dual")
        found.append(judge_logits(model_logits(model, prompt), references, wanted).verdict)
    return found


def test_the_exported_model_follows_the_right_list_on_both_sides_of_the_border(loaded: LoadedModel) -> None:
    assert verdicts(loaded, exported(factors_of(1.0)), factors_of(1.0)) == ["same", "same", "same"]


def test_one_temperature_for_both_windows_shows_in_the_logits(loaded: LoadedModel) -> None:
    inside = "differs: logits follow short at temperature 1.2, not short"
    assert verdicts(loaded, exported(factors_of(1.2)), factors_of(1.2)) == [inside, "same", "same"]


def test_exchanged_lists_show_in_the_logits(loaded: LoadedModel) -> None:
    config = exported(factors_of(1.0))
    for name in ("rope_scaling", "rope_parameters"):
        entries = config[name]
        entries["short_factor"], entries["long_factor"] = entries["long_factor"], entries["short_factor"]
    found = verdicts(loaded, config, factors_of(1.0))
    assert found[0] == "differs: logits follow long, not short"
    assert found[1:] == ["differs: logits follow short, not long"] * 2


def test_references_leave_the_model_as_it_was(loaded: LoadedModel) -> None:
    prompt = spread_prompt(IDS, WINDOW)
    before = model_logits(loaded.model, prompt)
    reference_logits(loaded, contenders(factors_of(1.2), native_scaling="default"), prompt)
    np.testing.assert_array_equal(model_logits(loaded.model, prompt), before)


def test_a_prompt_is_spread_from_the_first_position_to_the_last() -> None:
    prompt = spread_prompt(IDS, TARGET)
    assert (prompt.positions[0], prompt.positions[-1], len(prompt.ids)) == (0, TARGET - 1, 64)
    assert spread_prompt(IDS, 5).positions == [0, 1, 2, 3, 4]


def test_contenders_are_each_there_once() -> None:
    names = [contender.name for contender in contenders(factors_of(1.2), native_scaling="default")]
    assert names == ["long", "short", "long at temperature 1", "short at temperature 1.2"]
    assert [one.name for one in contenders(factors_of(1.0), native_scaling="default")] == ["long", "short"]
    # A scaling of the model's own is what it was loaded with
    assert contenders(factors_of(1.2), native_scaling="llama3")[1].factors is None


def test_logits_are_judged_by_the_mean_distance() -> None:
    references = {"long": np.zeros((1, 4)), "short": np.ones((1, 4))}
    found = judge_logits(np.full((1, 4), 0.2), references, "long")
    assert (found.factors, found.verdict) == ("long", "same")
    assert found.ratio == pytest.approx(4.0)  # 0.8 / 0.2
    assert judge_logits(np.full((1, 4), 0.3), references, "long").verdict == (
        "not verified here: logits are only 2.3 times nearer to long than to the next, 3 would tell"
    )
    assert judge_logits(np.full((1, 4), 0.9), references, "long").verdict == "differs: logits follow short, not long"
    alone = judge_logits(np.zeros((1, 4)), {"long": np.zeros((1, 4))}, "short")
    assert alone.verdict == "not verified here: there is one rotation only, which logits cannot tell from others"
