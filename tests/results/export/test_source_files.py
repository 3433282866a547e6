"""A model's files beside the export: linked or copied whole; a config.json that is none is refused."""

import errno
from pathlib import Path

import pytest

from results.export.source_files import other_files, place, read_config


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = tmp_path / "model"
    (model / "onnx").mkdir(parents=True)
    for name in ("config.json", "model.safetensors", ".gitattributes", "tokenizer.json"):
        (model / name).write_text(name)
    return model


def test_all_but_hidden_files_folders_and_what_is_written_anew_are_the_models_other_files(folder: Path) -> None:
    names = [path.name for path in other_files(folder, ["config.json"])]
    assert names == ["model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize("by_link", [True, False])
def test_a_file_is_replaced_whole_and_nothing_is_left_beside_it(folder: Path, tmp_path: Path, by_link: bool) -> None:
    out = tmp_path / "out"
    out.mkdir()
    source = folder / "model.safetensors"
    for _ in range(2):  # linked twice: the rename of a hard link onto itself
        place(source, out / source.name, by_link=by_link)
    assert [path.name for path in out.iterdir()] == [source.name]
    assert (out / source.name).read_text() == "model.safetensors"
    assert (out / source.name).samefile(source) == by_link
    assert not (out / source.name).is_symlink()


def test_a_link_in_a_cache_stands_for_the_file_it_leads_to(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "snapshot.bin").symlink_to(folder / "model.safetensors")
    place(tmp_path / "snapshot.bin", tmp_path / "linked.bin", by_link=True)
    assert not (tmp_path / "linked.bin").is_symlink()
    assert (tmp_path / "linked.bin").samefile(folder / "model.safetensors")


def test_on_another_file_system_the_link_is_symbolic(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(self: Path, target: Path) -> None:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    monkeypatch.setattr(Path, "hardlink_to", refused)
    place(folder / "tokenizer.json", tmp_path / "tokenizer.json", by_link=True)
    assert (tmp_path / "tokenizer.json").is_symlink()
    assert (tmp_path / "tokenizer.json").read_text() == "tokenizer.json"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b'{"model_type": "lla',
            r"config\.json: config\.json must be JSON, got text that is not: .* Was it cut off\?$",
        ),
        (b"\xff\xfe{}", r"config\.json: config\.json must be JSON, got text that is not: "),
        (b"[1]", r"config\.json: config\.json must be a JSON object, got a list\. Check the file\.$"),
        (None, r"config\.json: the model must have a readable config\.json, got: No such file or directory\.$"),
    ],
)
def test_a_config_that_is_none_is_refused(tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_config(tmp_path / "config.json")
