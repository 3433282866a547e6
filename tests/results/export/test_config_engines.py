"""MLX, ExLlama, ONNX Runtime GenAI, TensorRT-LLM: the config.json that each one reads, and what it cannot take."""

import json
import math
from collections.abc import Mapping

import pytest

from results.export.engine import Exporter
from results.export.exllamav2 import export_exllamav2
from results.export.exllamav3 import export_exllamav3
from results.export.mlx import export_mlx
from results.export.onnxruntime_genai import export_onnxruntime_genai
from results.export.tensorrt_llm import export_tensorrt_llm
from rope.factors import RescaleFactors
from tests.results.export.examples import FACTORS, FORMULA_TEMPERATURE, published_llama3, source

COMPUTING = pytest.mark.parametrize(
    "export",
    [export_mlx, export_exllamav2, export_exllamav3, export_tensorrt_llm],
    ids=["mlx", "exllamav2", "exllamav3", "tensorrt-llm"],
)


def config(export: Exporter, factors: RescaleFactors, model_type: str = "llama") -> Mapping[str, object]:
    saved_by_transformers_5 = {"rope_parameters": {"rope_type": "default", "rope_theta": 500_000.0}}
    files = export(factors, "dual", source(model_type, saved_by_transformers_5)).files
    assert list(files) == ["config.json"]
    found = json.loads(files["config.json"])
    assert isinstance(found, dict)
    return found


@COMPUTING
def test_config_json_is_the_models_with_the_rotation_spelled_as_these_engines_read_it(export: Exporter) -> None:
    assert config(export, FACTORS) == {
        "model_type": "llama",
        "hidden_size": 32,
        "max_position_embeddings": 128,
        "original_max_position_embeddings": 32,  # ExLlamaV2 and TensorRT-LLM read it here alone
        "rope_theta": 500_000.0,  # mlx-lm's llama knows no other place
        "rope_scaling": {
            "type": "longrope",  # ExLlamaV2 refuses rope_type beside it
            "short_factor": [1.0] * 8,
            "long_factor": [1.0, 1.5, 2.25, 3.4, 5.0, 5.5, 6.25, 7.75],
            "factor": 4.0,  # this and the next for our import; the engines read neither
            "attention_factor": FORMULA_TEMPERATURE,
            "original_max_position_embeddings": 32,  # mlx-lm reads it here alone
        },
    }


@COMPUTING
def test_the_published_temperature_is_what_these_engines_compute(export: Exporter) -> None:
    published = published_llama3()
    found = config(export, published)
    assert found["max_position_embeddings"] == 131_072
    scaling = found["rope_scaling"]
    assert isinstance(scaling, dict)
    assert scaling["long_factor"] == list(published.values)


@COMPUTING
def test_a_higher_temperature_is_had_by_a_longer_window_and_said(export: Exporter) -> None:
    found = config(export, FACTORS.with_temperature(1.25))
    window = found["max_position_embeddings"]
    # 32 ** (1.25 ** 2) = 224.7 by hand: 2 ** (5 * 1.5625) = 2 ** 7.8125
    assert window == 225
    # A whole number of tokens misses the temperature by at most 1 / (4 * 1.25 * 225 * ln 32)
    assert math.sqrt(1 + math.log(window / 32) / math.log(32)) == pytest.approx(1.25, abs=3e-4)
    notes = export(FACTORS.with_temperature(1.25), "dual", source()).notes
    assert any("225 stands there instead of 128" in note for note in notes)


def test_mlx_takes_any_temperature_from_1_since_it_uses_the_window_for_nothing_else() -> None:
    assert config(export_mlx, FACTORS.with_temperature(1.0))["max_position_embeddings"] == 32
    with pytest.raises(
        ValueError, match=r"^attention temperature must be one that mlx-lm can compute, .*got 0\.9500\..*"
    ):
        config(export_mlx, FACTORS.with_temperature(0.95))


@pytest.mark.parametrize("temperature", [1.0, 1.1, 0.9, 3.0])
@pytest.mark.parametrize("export", [export_exllamav2, export_exllamav3, export_tensorrt_llm])
def test_a_temperature_that_an_engine_cannot_compute_is_refused_with_a_way_out(
    export: Exporter, temperature: float
) -> None:
    told = rf"which is 1\.1832 for 32 to 128 tokens, got {temperature:.4f}\. Export to .*{FORMULA_TEMPERATURE!r}"
    with pytest.raises(ValueError, match=told):
        export(FACTORS.with_temperature(temperature), "pinned", source())


def test_a_temperature_beyond_all_numbers_is_refused_too() -> None:
    with pytest.raises(ValueError, match=r"^attention temperature must be one that mlx-lm can compute"):
        config(export_mlx, FACTORS.with_temperature(1e150))


@COMPUTING
def test_without_a_model_a_fragment_is_written_and_where_it_goes_is_said(export: Exporter) -> None:
    exported = export(FACTORS, "dual", None)
    assert list(exported.files) == ["config_fragment.json"]
    assert exported.steps[0].startswith("put the entries of {folder}/config_fragment.json into the model's config.json")


def test_exllamav2_loads_the_length_that_its_temperature_needs() -> None:
    with_others = source(config={"model_max_length": 32, "max_sequence_length": 32})  # it would read these first
    exported = export_exllamav2(FACTORS.with_temperature(1.25), "dual", with_others)
    written = json.loads(exported.files["config.json"])
    assert not {"model_max_length", "max_sequence_length"} & written.keys()
    assert "-l 225" in exported.steps[-1]


def test_mlx_is_refused_for_an_architecture_that_it_reads_no_factors_for() -> None:
    with pytest.raises(ValueError, match=r"^mlx must read factors for the model's architecture, got gpt_neox, .*"):
        export_mlx(FACTORS, "dual", source("gpt_neox"))


def test_onnxruntime_genai_takes_phi3_with_any_temperature() -> None:
    scaling = config(export_onnxruntime_genai, FACTORS.with_temperature(0.9), "phi3")["rope_scaling"]
    assert isinstance(scaling, dict)
    assert (scaling["type"], scaling["short_mscale"], scaling["long_mscale"]) == ("longrope", 1.0, 0.9)


@pytest.mark.parametrize("model_type", ["llama", "qwen2", None])
def test_onnxruntime_genai_is_refused_for_what_it_would_drop_in_silence(model_type: str | None) -> None:
    model = None if model_type is None else source(model_type)
    with pytest.raises(
        ValueError, match=r"^onnxruntime-genai must be given a phi3 model, got (llama|qwen2|no --model): "
    ):
        export_onnxruntime_genai(FACTORS, "dual", model)
