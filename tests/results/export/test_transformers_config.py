"""config.json for transformers: loaded by transformers itself, spelled as version 4 demands, and what is said of it."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaForCausalLM

from results.export.engine import SourceModel
from results.export.transformers_config import export_transformers
from rope.factors import RescaleFactors
from tests.results.export.examples import FACTORS, ORACLES, published_llama3, source

SIZE = {
    "vocab_size": 32,
    "hidden_size": 256,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "pad_token_id": 0,
}


def test_the_published_factors_load_in_plain_llama_and_give_the_published_inverse_frequencies_exactly(
    tmp_path: Path,
) -> None:
    published = published_llama3()
    llama3_8b = source(
        config={
            **SIZE,
            "architectures": ["LlamaForCausalLM"],
            "max_position_embeddings": 8192,
            "torch_dtype": "bfloat16",
        }
    )
    exported = export_transformers(published, "dual", llama3_8b)
    (tmp_path / "config.json").write_text(exported.files["config.json"], encoding="utf-8")
    config = AutoConfig.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    assert type(model) is LlamaForCausalLM
    rotary = model.model.rotary_emb
    # LongRoPE2's eq. 8 in float32, in transformers' order of operations, from the published list
    listed = json.loads((ORACLES / "longrope2_llama3_8b.json").read_text(encoding="utf-8"))["long_factor"]
    exponents = torch.arange(0, 128, 2, dtype=torch.int64).float() / 128
    expected = {8192: 1.0 / 500_000.0**exponents, 8193: 1.0 / (torch.tensor(listed) * 500_000.0**exponents)}
    for num_tokens, inv_freq in expected.items():
        cos, _ = rotary(torch.zeros(1), torch.arange(num_tokens)[None])
        assert torch.equal(rotary.inv_freq, inv_freq)
        assert float(cos[0, 0, 0]) == np.float32(1.1435437497937313)


def test_the_models_other_fields_are_kept_and_its_older_rotation_is_not() -> None:
    older = {"rope_scaling": {"rope_type": "dynamic", "factor": 2.0}, "eos_token_id": [1, 2], "own_field": {"a": None}}
    written = json.loads(export_transformers(FACTORS, "dual", source(config=older)).files["config.json"])
    assert (written["eos_token_id"], written["own_field"], written["hidden_size"]) == ([1, 2], {"a": None}, 32)
    assert written["rope_scaling"]["type"] == "longrope"
    assert "rope_type" not in written["rope_scaling"]


def test_version_4_and_version_5_find_what_each_reads() -> None:
    written = json.loads(export_transformers(FACTORS, "dual", source()).files["config.json"])
    # 4.57: original length at the top, else None <= float; base at the top
    assert (written["original_max_position_embeddings"], written["rope_theta"]) == (32, 500_000.0)
    # 5: all inside; a missing base is the architecture's default
    inside = written["rope_parameters"]
    assert (inside["rope_type"], inside["rope_theta"], inside["original_max_position_embeddings"]) == (
        "longrope", 500_000.0, 32,
    )  # fmt: skip


def test_pinned_rotates_alike_on_both_sides() -> None:
    written = json.loads(export_transformers(FACTORS, "pinned", source()).files["config.json"])
    assert written["rope_scaling"]["short_factor"] == written["rope_scaling"]["long_factor"] == list(FACTORS.values)


def test_phi3_has_the_three_keys_that_version_4_demands_where_they_say_everything() -> None:
    exported = export_transformers(FACTORS, "dual", source("phi3"))
    written = json.loads(exported.files["config.json"])
    assert written["rope_scaling"].keys() == {"type", "short_factor", "long_factor"}
    assert written["original_max_position_embeddings"] == 32  # else the class's 4096
    assert not any("transformers 4" in note for note in exported.notes)


def test_phi3_with_a_temperature_of_its_own_is_for_version_5_and_that_is_said() -> None:
    exported = export_transformers(FACTORS.with_temperature(1.3), "dual", source("phi3"))
    assert json.loads(exported.files["config.json"])["rope_scaling"]["attention_factor"] == 1.3
    assert exported.notes[0].startswith("transformers 4 refuses this config.json")


def test_what_transformers_does_otherwise_is_said_where_it_does() -> None:
    notes = " ".join(export_transformers(FACTORS, "dual", source()).notes)
    assert "multiplies cos and sin by 1.1832 up to 32 tokens too, where it should be 1.0000" in notes
    assert "generate() that crosses 32 tokens keeps a cache" in notes
    assert "generate()" not in " ".join(export_transformers(FACTORS, "dual", source("phi3")).notes)
    assert "multiplies" not in " ".join(export_transformers(FACTORS.with_temperature(1.0), "dual", source()).notes)
    assert export_transformers(FACTORS, "pinned", source()).notes == ()


def test_without_a_model_the_fragment_is_written() -> None:
    exported = export_transformers(FACTORS, "dual", None)
    assert list(exported.files) == ["config_fragment.json"]
    assert exported.steps == ("put the entries of {folder}/config_fragment.json into the model's config.json",)


def patched(factors: RescaleFactors, model: SourceModel | None) -> dict[str, str]:
    return dict(export_transformers(factors, "dual", model, patches_model=True).files)


def test_the_models_code_is_python_that_knows_its_class_and_its_window() -> None:
    factors = replace(FACTORS, short_attention_temperature=1.05)
    files = patched(factors, source(config={"architectures": ["Qwen3ForCausalLM"]}))
    tree = ast.parse(files["modeling_ropewalk.py"])
    (derived,) = [node for node in tree.body if isinstance(node, ast.ClassDef)]
    assert [ast.unparse(base) for base in derived.bases] == ["Qwen3ForCausalLM"]
    constants = [ast.unparse(node) for node in tree.body if isinstance(node, ast.Assign)]
    assert constants == ["ORIGINAL_LENGTH = 32", "SHORT_ATTENTION_TEMPERATURE = 1.05"]
    auto_map = json.loads(files["config.json"])["auto_map"]
    assert auto_map == {"AutoModelForCausalLM": f"modeling_ropewalk.{derived.name}"}


@pytest.mark.parametrize("architectures", [None, [], ["import os"], "LlamaForCausalLM"])
def test_a_class_that_is_not_known_cannot_be_patched(architectures: object) -> None:
    with pytest.raises(ValueError, match=r"^--short-temperature patch must know the model's class from architectures"):
        patched(FACTORS, source(config={"architectures": architectures}))


def test_there_is_nothing_to_patch_in_pinned_without_a_model_or_in_code_of_its_own() -> None:
    model = source(config={"architectures": ["LlamaForCausalLM"]})
    with pytest.raises(ValueError, match=r"^--short-temperature patch must come with --mode dual, got pinned, "):
        export_transformers(FACTORS, "pinned", model, patches_model=True)
    with pytest.raises(ValueError, match=r"got None\. Give --model\.$"):
        patched(FACTORS, None)
    own_code = source(config={"architectures": ["LlamaForCausalLM"], "auto_map": {"AutoConfig": "own.Config"}})
    with pytest.raises(ValueError, match=r"^--short-temperature patch must be for a class of transformers, "):
        patched(FACTORS, own_code)
