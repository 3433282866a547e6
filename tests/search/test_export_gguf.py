"""`ropewalk export --to llama.cpp` and ollama: the file beside the model, in its place, and what Ollama reads."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.cli import main

FACTORS = METHODS["yarn"](8, 10_000.0, original_length=256, target_length=1024).with_temperature(1.1)


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """Command line with factors and a tiny llama."""
    FACTORS.save(tmp_path / "factors.json")
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "llama")
    writer.add_context_length(256)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_tensor("token_embd.weight", np.ones((2, 32), dtype=np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return ["export", f"--factors={tmp_path / 'factors.json'}", f"--model={tmp_path / 'tiny.gguf'}"]


def long_list(path: Path) -> tuple[float, ...]:
    tensors = {tensor.name: tensor.data for tensor in gguf.GGUFReader(path).tensors}
    return tuple(tensors["rope_factors_long.weight"].tolist())


def in_float32(factors: RescaleFactors) -> tuple[float, ...]:
    return tuple(np.array(factors.values, dtype=np.float32).tolist())


def test_llama_cpp_gets_a_file_of_the_models_name_and_the_model_stays(arguments: list[str], tmp_path: Path) -> None:
    before = (tmp_path / "tiny.gguf").read_bytes()
    assert main([*arguments, "--to=llama.cpp", f"--out={tmp_path / 'out'}"]) == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["tiny.gguf"]
    assert long_list(tmp_path / "out" / "tiny.gguf") == in_float32(FACTORS)
    assert (tmp_path / "tiny.gguf").read_bytes() == before


def test_the_model_is_changed_in_its_place_only_where_that_is_asked_for(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--to=llama.cpp", f"--out={tmp_path}"]) == 2
    assert "--out must hold none of the files that are written" in capsys.readouterr().err
    assert main([*arguments, "--to=llama.cpp", "--in-place"]) == 0
    assert long_list(tmp_path / "tiny.gguf") == in_float32(FACTORS)


def test_ollama_gets_a_modelfile_that_names_the_file_and_the_window(arguments: list[str], tmp_path: Path) -> None:
    assert main([*arguments, "--to=ollama", "--mode=pinned", f"--out={tmp_path / 'out'}"]) == 0
    assert (tmp_path / "out" / "Modelfile").read_text() == "FROM ./tiny.gguf\nPARAMETER num_ctx 1024\n"
    assert long_list(tmp_path / "out" / "tiny.gguf") == in_float32(FACTORS)


def test_an_existing_modelfile_is_refused_before_the_model_is_copied(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "Modelfile").write_text("mine")
    assert main([*arguments, "--to=ollama", f"--out={tmp_path / 'out'}"]) == 2
    assert "with Modelfile" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Modelfile"]


def test_what_is_no_gguf_is_refused_and_leaves_no_folder_with_files(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"no model")
    assert main([*arguments, "--to=llama.cpp", f"--out={tmp_path / 'out'}"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert not (tmp_path / "out").exists()
    (tmp_path / "there").mkdir()
    for out in (tmp_path / "new" / "out", tmp_path / "there" / "out"):
        assert main([*arguments, "--to=ollama", f"--out={out}"]) == 2
    assert not (tmp_path / "new").exists()
    assert not list((tmp_path / "there").iterdir())


def test_what_to_type_is_told_as_the_next_steps(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for to, commands in (
        ([f"--out={tmp_path / 'a'}", "--to=llama.cpp"], ["llama-server -m", "llama-server -m"]),
        ([f"--out={tmp_path / 'b'}", "--to=ollama"], ["ollama create"]),
        (["--in-place", "--to=llama.cpp"], ["llama-server -m", "llama-server -m"]),
    ):
        assert main([*arguments, *to]) == 0
        lines = capsys.readouterr().out.splitlines()
        steps = [line.removeprefix("next: ") for line in lines if line.startswith("next: ")]
        assert [" ".join(step.split()[:2]) for step in steps] == commands
        assert not [line for line in lines if line.startswith("note: llama-server")]
