"""The command line's bad input: one line, exit code 2, nothing created."""

import re
from pathlib import Path

import pytest

from search.cli import build_search_parser, main

REQUIRED = ["--model", "no-such-folder", "--corpus", "noise", "--target-length", "1024"]


@pytest.fixture(autouse=True)
def working_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def refused(working_dir: Path, capsys: pytest.CaptureFixture[str]) -> "Refused":
    return Refused(working_dir, capsys)


class Refused:
    """Runs a command that must be refused and returns its message."""

    def __init__(self, working_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self._working_dir = working_dir
        self._capsys = capsys

    def __call__(self, *arguments: str) -> str:
        before = {path: path.read_bytes() for path in self._working_dir.iterdir()}
        assert main(arguments) == 2
        output, errors = self._capsys.readouterr()
        assert output == ""
        assert errors.startswith("ropewalk: error: ")
        assert errors.endswith("\n")
        assert errors.count("\n") == 1, f"more than one line: {errors}"
        assert "Traceback" not in errors
        assert {path: path.read_bytes() for path in self._working_dir.iterdir()} == before
        return errors.removeprefix("ropewalk: error: ").rstrip("\n")


def test_no_command_is_refused(refused: Refused) -> None:
    assert "search" in refused()


def test_an_unknown_command_is_refused_with_the_known_ones(refused: Refused) -> None:
    message = refused("find")
    assert "'find'" in message
    assert "'search'" in message


def test_an_unknown_option_is_refused_and_the_known_ones_are_listed(refused: Refused) -> None:
    for option in ("--modell", "--space.stepp", "--version"):
        message = refused("search", *REQUIRED, option, "1")
        assert f"unrecognized arguments: {option} 1; known options: " in message
        assert "corpus" in message
        assert "space.critical_dims" in message


def test_a_word_that_belongs_to_no_option_is_refused(refused: Refused) -> None:
    assert "unrecognized arguments: extra" in refused("search", *REQUIRED, "extra")


def test_an_unknown_key_in_a_file_is_refused_and_the_known_ones_are_listed(working_dir: Path, refused: Refused) -> None:
    file = working_dir / "config.yaml"
    for text, key in (("modell: x\n", "modell"), ("model: x\nspace:\n  stepp: 1\n", "space.stepp")):
        file.write_text(text)
        message = refused("search", "--config", str(file))
        assert f"does not accept option '{key}'; known options: " in message
        assert "evolution.num_generations" in message


def test_what_is_missing_is_named(refused: Refused) -> None:
    assert refused("search").startswith("a search needs --model, --corpus, --target-length; give them")
    assert refused("search", *REQUIRED[:4]).startswith("a search needs --target-length; give them")


@pytest.mark.parametrize(
    ("option", "value", "kind"),
    [
        ("--target-length", "long", "int"),
        ("--target-length", "1024.5", "int"),
        ("--space.step", "fine", "float"),
        ("--dtype", "int8", "bfloat16"),
        ("--documents.prompt", "poem", "ruler"),
        ("--space.critical-dims", "[a]", "int"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_with_the_right_one(
    refused: Refused, option: str, value: str, kind: str
) -> None:
    message = refused("search", *REQUIRED, option, value)
    assert option[2:].replace("-", "_") in message
    assert kind in message
    assert value.strip("[]") in message


def test_an_option_without_its_value_is_refused(refused: Refused) -> None:
    assert "expected one argument" in refused("search", *REQUIRED, "--seed")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "-1"], "--seed must not be negative, got -1"),
        (["--workers=-1"], "--workers, --gpus-per-worker, --cpus-per-worker and --retries must not be neg"),
        (["--documents.num-search", "0"], "documents.num_search must be at least 1, got 0"),
        (["--evolution.population-size", "0"], "evolution.population_size must be at least 1, got 0"),
        (["--formulas.methods", "[ntk2]"], "formulas.methods must name at least one of none, linear, "),
    ],
)
def test_a_value_that_cannot_be_used_is_refused(refused: Refused, arguments: list[str], message: str) -> None:
    assert refused("search", *REQUIRED, *arguments).startswith(message)


def test_a_file_that_cannot_be_read_is_refused(working_dir: Path, refused: Refused) -> None:
    missing = working_dir / "none.yaml"
    assert f"File does not exist: '{missing}'" in refused("search", "--config", str(missing))
    assert "not a file" in refused("search", "--config", str(working_dir))


@pytest.mark.parametrize("content", [b"model: [x\n", b"- 1\n- 2\n", b"model: \xff\xfe\n"])
def test_a_file_that_is_no_mapping_is_refused(working_dir: Path, refused: Refused, content: bytes) -> None:
    file = working_dir / "config.yaml"
    file.write_bytes(content)
    assert refused("search", "--config", str(file))


def test_a_model_that_is_not_there_is_refused_before_anything_is_written(refused: Refused) -> None:
    message = refused("search", *REQUIRED, "--run-dir", "run")
    assert message.startswith("--model must be ")
    assert "no-such-folder" in message


def test_a_prefix_of_an_option_is_unknown(refused: Refused) -> None:
    assert "unrecognized arguments: --mode" in refused("search", *REQUIRED, "--mode", "x")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_the_help_spells_options_with_dashes_and_says_their_defaults(
    capsys: pytest.CaptureFixture[str], flag: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["search", flag])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    options = set(re.findall(r"--[\w.-]+", text))
    assert {"--target-length", "--evolution.num-generations", "--space.critical-dims", "--run-dir"} <= options
    assert not [option for option in options if "_" in option]
    assert re.search(r"Candidates of the initial population\.\s+\(type: int,\s+default: 64\)", text)


def test_the_help_of_the_whole_program_names_its_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert re.search(r"search\s+search factors for a target length", capsys.readouterr().out)


def test_options_with_dashes_underscores_and_files_mean_the_same(
    working_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = working_dir / "config.yaml"
    file.write_text("target_length: 2048\nevolution:\n  num_generations: 3\n")
    printed = []
    for arguments in (
        ["--target-length", "2048", "--evolution.num-generations", "3"],
        ["--target_length=2048", "--evolution.num_generations=3"],
        ["--config", str(file)],
        ["--config", str(file), "--evolution.num-generations=3"],
    ):
        with pytest.raises(SystemExit):
            main(["search", *arguments, "--print-config"])
        printed.append(capsys.readouterr().out)
    assert "num_generations: 3" in printed[0]
    assert printed == printed[:1] * 4


def test_an_option_behind_a_file_wins(working_dir: Path) -> None:
    file = working_dir / "config.yaml"
    file.write_text("seed: 4\nrun_dir: from-file\n")
    options = build_search_parser().parse_args(["--config", str(file), "--seed", "5"])
    assert options.seed == 5
    assert options.run_dir == "from-file"


def test_dashes_in_values_are_left_alone(refused: Refused) -> None:
    assert "no-such-model" in refused("search", *REQUIRED, "--model=no-such-model")
