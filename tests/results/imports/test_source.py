"""Sources of every form, and what comes back of what was exported."""

import json
import re
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from results.export.engine import SourceModel
from results.export.engines import ENGINES
from results.export.huggingface import huggingface_fragment
from results.imports.imported import Given
from results.imports.published import import_published
from results.imports.source import import_source, short_list
from rope.factors import RescaleFactors
from rope.longrope2 import longrope2_factors

ORACLES = Path(__file__).parents[2] / "oracles"
PHI3 = {
    "model_type": "phi3",
    "architectures": ["Phi3ForCausalLM"],
    "hidden_size": 3072,
    "num_attention_heads": 32,
    "rope_theta": 10_000.0,
    "original_max_position_embeddings": 4096,
    "max_position_embeddings": 131_072,
}
GIVEN = Given(base=5e5, original_length=8192, target_length=131_072)


@pytest.fixture
def phi3(tmp_path: Path) -> RescaleFactors:
    """Phi-3's published lists, imported from a configuration written by hand."""
    published = json.loads((ORACLES / "longrope_phi3_mini.json").read_text(encoding="utf-8"))
    scaling = {name: published[name] for name in ("long_factor", "short_factor")}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**PHI3, "rope_scaling": {"type": "longrope", **scaling}}), encoding="utf-8")
    factors = import_source(str(path), Given()).factors
    assert list(factors.values) == published["long_factor"]
    assert factors.short_values is not None
    assert list(factors.short_values) == published["short_factor"]
    return factors


def saved(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def test_phi3s_published_lists_come_back_from_transformers_bit_for_bit(tmp_path: Path, phi3: RescaleFactors) -> None:
    exported = saved(tmp_path, "exported.json", json.dumps(huggingface_fragment(phi3, short_factors=phi3.short_values)))
    again = import_source(exported, Given()).factors
    assert again == phi3
    assert again == import_source("published:longrope-phi3-mini-128k-2024-07", Given()).factors.with_values(
        phi3.values, method="imported"
    )


@pytest.mark.parametrize("engine", [name for name, engine in ENGINES.items() if engine.export and name != "plain"])
def test_lists_come_back_from_every_engines_configuration_bit_for_bit(
    tmp_path: Path, phi3: RescaleFactors, engine: str
) -> None:
    source = SourceModel(name="phi3", config=PHI3, model_type="phi3", partial_rotary_factor=None)
    export = ENGINES[engine].export
    assert export is not None
    files = export(phi3, "dual", source).files
    (text,) = [text for name, text in files.items() if name.endswith(".json") and "long_factor" in text]
    again = import_source(saved(tmp_path, "exported.json", text), Given()).factors
    assert (again.values, again.short_values) == (phi3.values, phi3.short_values)
    assert (again.base, again.rotary_dim, again.original_length) == (phi3.base, phi3.rotary_dim, phi3.original_length)
    assert again.target_length == phi3.target_length
    assert again.attention_temperature == phi3.attention_temperature


@pytest.mark.parametrize(
    ("engine", "temperature"),
    [(name, 1.12) for name in ("mlx", "exllamav2", "exllamav3", "tensorrt-llm")] + [("mlx", 1.0)],
)
def test_target_and_temperature_come_back_where_another_window_is_declared(
    tmp_path: Path, engine: str, temperature: float
) -> None:
    factors = longrope2_factors(96, 1e4, original_length=2048, target_length=8192).with_temperature(temperature)
    export = ENGINES[engine].export
    assert export is not None
    (text,) = [text for text in export(factors, "dual", None).files.values() if "long_factor" in text]
    declared = json.loads(text)["max_position_embeddings"]
    assert declared != 8192
    again = import_source(saved(tmp_path, "exported.json", text), Given())
    assert (again.factors.target_length, again.factors.attention_temperature) == (8192, temperature)
    assert any(f"Or give --target-length {declared}." in note for note in again.notes)


def test_a_temperature_for_each_window_comes_back_from_vllm(tmp_path: Path, phi3: RescaleFactors) -> None:
    factors = longrope2_factors(96, 1e4, original_length=4096, target_length=16_384).with_temperature(1.25)
    export = ENGINES["vllm"].export
    assert export is not None
    (text,) = [text for text in export(factors, "dual", None).files.values() if "long_factor" in text]
    again = import_source(saved(tmp_path, "overrides.json", text), Given()).factors
    assert again == factors.with_values(factors.values, method="imported", critical_dim=factors.critical_dim)


def test_plain_lists_come_back_bit_for_bit(tmp_path: Path) -> None:
    factors = longrope2_factors(128, 5e5, original_length=8192, target_length=131_072, critical_dim=29)
    export = ENGINES["plain"].export
    assert export is not None
    for name, text in export(factors, "dual", None).files.items():
        if name.endswith(".csv"):
            again = import_source(saved(tmp_path, name, text), GIVEN).factors
            assert again == factors.with_values(factors.values, method="imported", critical_dim=29)


def test_every_form_of_a_list_is_told_by_its_content(tmp_path: Path) -> None:
    values = [1.0, 2.0, 4.0, 8.0, 9.0]
    for name, text in {
        "a.csv": "\n".join(map(str, values)),
        "b.txt": " ".join(map(str, values)),
        "c.json": json.dumps(values),
        "d.json": json.dumps({"long_factor": values}),
        "e": json.dumps(values),
    }.items():
        imported = import_source(saved(tmp_path, name, text), GIVEN)
        assert imported.factors.values == tuple(values)
        assert imported.factors.critical_dim == 3
        assert imported.factors.provenance["imported_from"] == name


def test_a_folder_is_its_configuration_or_else_its_factors(tmp_path: Path, phi3: RescaleFactors) -> None:
    assert import_source(str(tmp_path), Given()).factors == phi3
    run = tmp_path / "run"
    run.mkdir()
    with pytest.raises(
        ValueError, match=r"^a folder must hold a config\.json or a factors\.json, got .*/run without\. "
    ):
        import_source(str(run), Given())
    phi3.save(run / "factors.json")
    assert import_source(str(run), Given()).factors == phi3


def test_ropewalks_own_factors_stay_but_for_what_the_user_says(tmp_path: Path, phi3: RescaleFactors) -> None:
    path = tmp_path / "factors.json"
    phi3.save(path)
    given = Given(original_length=2048, target_length=65_536, attention_temperature="longrope")
    factors = import_source(str(path), given).factors
    assert (factors.original_length, factors.target_length) == (2048, 65_536)
    # 32 times 2048 tokens: sqrt(1 + 5/11)
    assert factors.attention_temperature == pytest.approx((16 / 11) ** 0.5, rel=1e-15)
    assert factors.values == phi3.values


def test_a_short_list_and_a_temperature_can_be_given_beside_a_list(tmp_path: Path) -> None:
    long = saved(tmp_path, "long.csv", "1\n2\n")
    short = short_list(saved(tmp_path, "short.json", "[1, 1.5]"))
    given = Given(base=1e4, original_length=512, target_length=2048, short_values=short, attention_temperature=1.25)
    factors = import_source(long, given).factors
    assert factors.short_values == (1.0, 1.5)
    assert (factors.attention_temperature, factors.short_attention_temperature) == (1.25, 1.0)


def test_a_gguf_file_comes_back_in_float32(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(131_072)
    writer.add_rope_dimension_count(4)
    writer.add_rope_freq_base(1e4)
    writer.add_head_count(1)
    writer.add_embedding_length(4)
    writer.add_rope_scaling_type(gguf.RopeScalingType.LONGROPE)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_rope_scaling_attn_factors(1.19)
    writer.add_tensor("rope_factors_long.weight", np.array([1.0, 30.1], dtype=np.float32))
    writer.add_tensor("rope_factors_short.weight", np.array([1.0, 1.1], dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    factors = import_source(str(path), Given()).factors
    assert factors.values == (1.0, float(np.float32(30.1)))
    assert factors.short_values == (1.0, float(np.float32(1.1)))
    assert (factors.original_length, factors.target_length, factors.base) == (4096, 131_072, 1e4)
    shouted = path.rename(tmp_path / "MODEL.GGUF")
    assert import_source(str(shouted), Given()).factors.values == factors.values
    path = shouted
    with pytest.raises(
        ValueError, match=rf"^{re.escape(str(path))}: --base must be what the source says, 10000, got 5"
    ):
        import_source(str(path), Given(base=5e5))


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("config.json", "model: x", "factors must be JSON, got text that is not: "),
        ("config.json", '{"rope_scaling": {', "factors must be JSON, got text that is not: "),
        ("list.csv", "pair,factor\n0,1\n", "factors must be one number per line or the same in every line, "),
        ("list.csv", "", "factors must be one number per line at least, got an empty file."),
        ("list.json", "[1.0, null]", "the list must be a list of numbers, got [1.0, None]."),
        ("factors.json", '{"schema_version": 99}', "factors must be a JSON object with schema_version 1, got 99."),
        ("tokenizer.json", '{"version": "1.0"}', "the configuration must have a scaling of RoPE, "),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_file(tmp_path: Path, name: str, text: str, message: str) -> None:
    path = saved(tmp_path, name, text)
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: {re.escape(message)}") as caught:
        import_source(path, GIVEN)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused_once(tmp_path: Path) -> None:
    path = str(tmp_path / "none.json")
    with pytest.raises(ValueError, match=f"^{re.escape(path)}: factors must be in a readable file, got: No such file"):
        import_source(path, Given())


def test_a_short_list_is_refused_where_there_is_one(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^--short-list must go with a source without factors for the original window"
    ):
        import_source("published:longrope-phi3-mini-128k-2024-07", Given(short_values=(1.0,) * 48))


def test_a_short_list_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^short_values must have 64 entries \(rotary_dim 128 / 2\), got 2\."):
        import_source("published:longrope2-llama3-8b-128k", Given(short_values=(1.0, 2.0)))


def test_a_temperature_that_is_none_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"^attention temperature must be one of none, longrope, yarn or a number above 0"
    ):
        import_source("published:longrope2-llama3-8b-128k", Given(attention_temperature="warm"))


def test_a_published_list_for_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^--rotary-dim must be what the source says, 128, got 96\. Leave it out\.$"):
        import_source("published:longrope2-llama3-8b-128k", Given(rotary_dim=96))


def test_published_lists_keep_their_critical_dimension() -> None:
    factors: Any = import_source("published:longrope2-llama3-8b-128k", Given()).factors
    assert factors == import_published("longrope2-llama3-8b-128k").factors
    assert factors.critical_dim == 33
