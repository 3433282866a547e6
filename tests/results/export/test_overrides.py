"""vLLM and SGLang: what the engines' own rules for overrides demand, written down by hand."""

import json
import shlex
from dataclasses import replace

import pytest

from results.export.engine import Exporter
from results.export.sglang import export_sglang
from results.export.vllm import export_vllm
from tests.results.export.examples import FACTORS, FORMULA_TEMPERATURE, source

FOLDER = "/tmp/a folder"
BOTH = pytest.mark.parametrize("export", [export_vllm, export_sglang], ids=["vllm", "sglang"])


def overrides(export: Exporter, *arguments: object) -> dict[str, object]:
    (text,) = export(*arguments).files.values()  # type: ignore[arg-type]
    found = json.loads(text)
    assert isinstance(found, dict)
    return found


@BOTH
def test_the_overrides_say_all_that_the_engine_would_else_take_from_elsewhere(export: Exporter) -> None:
    assert overrides(export, FACTORS, "dual", source()) == {
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,
        "rope_parameters": {
            "rope_type": "longrope",  # `type` alone: KeyError in vLLM, plain rotation in SGLang
            "rope_theta": 500_000.0,  # else base 10000 in vLLM
            "original_max_position_embeddings": 32,  # KeyError in vLLM, never long for Qwen in SGLang
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.5, 2.25, 3.4, 5.0, 5.5, 6.25, 7.75],
            "short_mscale": 1.0,  # else the formula's, in both windows
            "long_mscale": FORMULA_TEMPERATURE,
        },
    }


@BOTH
def test_the_rotated_share_of_each_head_is_said_where_it_is_not_all(export: Exporter) -> None:
    parameters = overrides(export, FACTORS, "dual", source("phi3", share=0.75))["rope_parameters"]
    assert isinstance(parameters, dict)
    assert parameters["partial_rotary_factor"] == 0.75


@BOTH
def test_pinned_has_the_long_factors_and_their_temperature_in_both_windows(export: Exporter) -> None:
    parameters = overrides(export, FACTORS.with_temperature(1.5), "pinned", None)["rope_parameters"]
    assert isinstance(parameters, dict)
    assert parameters["short_factor"] == parameters["long_factor"] == list(FACTORS.values)
    assert parameters["short_mscale"] == parameters["long_mscale"] == 1.5


@BOTH
def test_factors_that_bring_a_short_list_and_temperature_keep_them(export: Exporter) -> None:
    factors = replace(FACTORS, short_values=(1.1,) * 8, short_attention_temperature=1.05)
    parameters = overrides(export, factors, "dual", None)["rope_parameters"]
    assert isinstance(parameters, dict)
    assert (parameters["short_factor"], parameters["short_mscale"]) == ([1.1] * 8, 1.05)


def test_the_command_of_vllm_is_one_that_a_shell_takes_apart_into_what_is_meant() -> None:
    (step,) = export_vllm(FACTORS, "dual", source()).steps
    words = shlex.split(step.replace("{folder}", shlex.quote(FOLDER)))
    assert words == [
        "vllm", "serve", "a model", "--max-model-len", "128",
        "--hf-overrides", f"$(cat '{FOLDER}'/vllm_overrides.json)",
    ]  # fmt: skip


def test_the_command_of_sglang_is_one_that_a_shell_takes_apart_into_what_is_meant() -> None:
    (step,) = export_sglang(FACTORS, "dual", source()).steps
    words = shlex.split(step.replace("{folder}", shlex.quote(FOLDER)))
    assert words == [
        "python", "-m", "sglang.launch_server", "--model-path", "a model", "--context-length", "128",
        "--json-model-override-args", f"$(cat '{FOLDER}'/sglang_overrides.json)",
    ]  # fmt: skip


def test_vllm_says_that_it_chooses_once_and_sglang_that_it_chooses_per_batch_and_errs_at_the_border() -> None:
    assert any("chooses once, when it starts" in note for note in export_vllm(FACTORS, "dual", None).notes)
    assert not any("chooses once" in note for note in export_vllm(FACTORS, "pinned", None).notes)
    assert any("per batch" in note for note in export_sglang(FACTORS, "dual", None).notes)
    assert any("position 32 like one at position 0" in note for note in export_sglang(FACTORS, "pinned", None).notes)


@BOTH
def test_start_tokens_are_refused(export: Exporter) -> None:
    with pytest.raises(ValueError, match=r"^exported factors must have num_start_tokens 0, got 4: .*$"):
        export(replace(FACTORS, num_start_tokens=4), "dual", None)
