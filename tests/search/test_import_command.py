"""`ropewalk import`: what it prints, what it writes, and what reads that."""

import json
from pathlib import Path

import pytest

from rope.factors import RescaleFactors, load_factors
from rope.yarn import yarn_factors
from search.evaluation.config import EvaluationConfig
from search.evaluation.contenders import read_contenders
from search.import_command import run_import
from search.import_config import ImportConfig
from workers.model import describe_model

REFERENCE = Path(__file__).parents[2] / "workers" / "reference" / "model"
WINDOW = 256


def test_a_published_list_is_told_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "factors.json"
    run_import(ImportConfig(source="published:longrope2-llama3-8b-128k", output=str(output)))
    told = capsys.readouterr().out.splitlines()
    assert told[:7] == [
        "read                a published list: published:longrope2-llama3-8b-128k",
        "model               rotary_dim 128 (64 frequency pairs), base 500000",
        "window              8192 to 131072 tokens (16x)",
        "factors             1 to 26.05, none below the one before",
        "critical dimension  33 (theoretical 35, searched from 24)",
        "inside the window   the model's own rotation",
        "temperature         1.14354 beyond the window, 1.14354 inside it",
    ]
    assert told[7] == f"written             {output}"
    assert all(line.startswith("note: ") for line in told[8:])
    factors = load_factors(output)
    assert (factors.critical_dim, factors.values[33], factors.values[63]) == (33, 21.81, 26.05)


def test_a_list_that_falls_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = str(tmp_path / "factors.json")
    run_import(ImportConfig(source="published:longrope-mistral-7b-2048k-ft256k", output=output))
    told = capsys.readouterr().out
    # Its published numbers 4 and 5 are 1.3221 and 1.3108
    assert "factors             1.0807 to 422.202, not monotone, the first that falls is pair 5\n" in told
    assert "critical dimension  none to be seen in the list (theoretical 46, searched from 30)\n" in told
    assert "inside the window   factors of its own, 1.06 to 63.97, none below the one before\n" in told


def test_an_evaluation_takes_what_was_imported(tmp_path: Path) -> None:
    yarn = yarn_factors(32, 500.0, original_length=WINDOW, target_length=4 * WINDOW)
    listed, output = tmp_path / "list.csv", tmp_path / "imported.json"
    listed.write_text("".join(f"{value!r}\n" for value in yarn.values), encoding="utf-8")
    run_import(
        ImportConfig(
            source=str(listed),
            output=str(output),
            base=500.0,
            original_length=WINDOW,
            target_length=4 * WINDOW,
            attention_temperature="yarn",
        )
    )
    evaluation = EvaluationConfig(model=str(REFERENCE), factors=str(output), methods="yarn", lengths="1024")
    by_formula, imported = read_contenders(evaluation, describe_model(str(REFERENCE)).geometry)
    assert imported.name == "imported"
    assert by_formula.factors is not None
    assert imported.factors is not None
    assert imported.factors.values == by_formula.factors.values
    assert imported.factors.attention_temperature == by_formula.factors.attention_temperature


def test_a_configuration_is_imported_by_its_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((REFERENCE / "config.json").read_text(encoding="utf-8"))
    config |= {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 500.0}}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    run_import(ImportConfig(source=str(tmp_path), output=str(tmp_path / "factors.json")))
    factors = RescaleFactors.load(tmp_path / "factors.json")
    assert factors.values == factors.short_values == (4.0,) * 16
    assert "inside the window   the same factors\n" in capsys.readouterr().out


def test_a_short_list_of_its_own_file_is_taken(tmp_path: Path) -> None:
    short, output = tmp_path / "short.csv", tmp_path / "factors.json"
    short.write_text("1.5\n" * 64, encoding="utf-8")
    source = "published:longrope2-llama3-8b-128k"
    run_import(ImportConfig(source=source, output=str(output), short_list=str(short)))
    assert RescaleFactors.load(output).short_values == (1.5,) * 64


def test_an_output_that_exists_is_refused_before_the_source_is_read(tmp_path: Path) -> None:
    output = tmp_path / "factors.json"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^--output must not exist yet, got .*factors\.json, which does\. "):
        run_import(ImportConfig(source="published:none", output=str(output)))
    assert output.read_text(encoding="utf-8") == "mine"
    run_import(ImportConfig(source="published:longrope2-llama3-8b-128k", output=str(output), force=True))
    assert RescaleFactors.load(output).rotary_dim == 128


def test_a_source_that_cannot_be_read_leaves_an_older_output_as_it_was(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "factors.json"
    output.write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="Did you mean"):
        run_import(ImportConfig(source="published:none", output=str(output), force=True))
    assert output.read_text(encoding="utf-8") == "mine"
    assert list(tmp_path.iterdir()) == [output]
    assert capsys.readouterr().out == ""


def test_an_output_without_a_folder_or_that_is_one_is_refused(tmp_path: Path) -> None:
    source = "published:longrope2-llama3-8b-128k"
    with pytest.raises(ValueError, match=r"^--output must lie in a folder that exists, got .*Create .*/no first\.$"):
        run_import(ImportConfig(source=source, output=str(tmp_path / "no" / "factors.json")))
    with pytest.raises(ValueError, match=r"^--output must be a file, got .*, which is a folder\. "):
        run_import(ImportConfig(source=source, output=str(tmp_path), force=True))


def test_numbers_that_no_source_can_go_with_are_refused() -> None:
    with pytest.raises(ValueError, match=r"^--original-length must be at least 1, got 0\. Correct it\.$"):
        ImportConfig(source="x", original_length=0)
    with pytest.raises(ValueError, match=r"^--rotary-dim must be at least 1, got -2\. Correct it\.$"):
        ImportConfig(source="x", rotary_dim=-2)
    with pytest.raises(ValueError, match=r"^--base must be above 1, got 1\. Correct it\.$"):
        ImportConfig(source="x", base=1.0)
    with pytest.raises(ValueError, match=r"^an import must have a source, got none\. "):
        ImportConfig(source="")
