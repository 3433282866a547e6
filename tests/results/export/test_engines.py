"""The table of engines: the README's own, and whole."""

from pathlib import Path

import pytest

from results.export.engines import ENGINES, known_engine, markdown_table

README = Path(__file__).parents[3] / "README.md"


def test_the_table_of_the_readme_is_that_of_the_engines() -> None:
    assert markdown_table() in README.read_text(encoding="utf-8")


def test_each_row_of_the_table_is_one_line_of_five_columns() -> None:
    lines = markdown_table().splitlines()
    assert len(lines) == 2 + len(ENGINES)
    assert all(line.count("|") == 6 for line in lines)


def test_every_engine_but_those_of_gguf_files_has_an_exporter() -> None:
    assert [name for name, engine in ENGINES.items() if engine.export is None] == ["llama.cpp", "ollama"]


def test_an_unknown_engine_is_refused_with_those_that_are_known() -> None:
    with pytest.raises(
        ValueError, match=r"^--to must be one of transformers, vllm, .*plain, got 'tgi'\. Correct it\.$"
    ):
        known_engine("tgi")
