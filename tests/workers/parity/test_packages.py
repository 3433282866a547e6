from dataclasses import replace
from pathlib import Path

import pytest

from results.parity import UNVERIFIED
from tests.workers.parity.rotations import factors_of
from workers.parity.engines import ParityEngine, Setting
from workers.parity.packages import EnginePackage, installed_package, unzipped_packages
from workers.parity.probe import Probe
from workers.parity.process import EngineError, ask, rotations
from workers.parity.source import block, cut, load_file, run, stub
from workers.parity.verification import verify_engine, windows


def test_an_installed_package_is_found_without_importing_it() -> None:
    import numpy as np

    found = installed_package("numpy", "numpy")
    assert found is not None
    assert found.version == np.__version__
    assert found.root == Path(np.__file__).parent
    assert installed_package("no_such_engine", "no-such-engine") is None


def test_unzipped_packages_are_found_in_a_folder_and_in_folders_of_it(tmp_path: Path) -> None:
    for place, version in (("", 'version = "1.2"'), ("older", '__version__ = version = "1.1"'), ("bare", "")):
        root = tmp_path / place / "engine"
        root.mkdir(parents=True)
        (root / "__init__.py").touch()
        (root / "version.py").write_text(version)
    metadata = tmp_path / "bare" / "an_engine-0.9.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: an_engine\nVersion: 0.9\n")
    found = unzipped_packages("engine", "an-engine", tmp_path)
    assert found == [
        EnginePackage(tmp_path / "engine", "1.2"),
        EnginePackage(tmp_path / "bare/engine", "0.9"),
        EnginePackage(tmp_path / "older/engine", "1.1"),
    ]
    assert unzipped_packages("other", "other", tmp_path) == []


def test_definitions_are_cut_out_of_a_file_whose_imports_cannot_be_met(tmp_path: Path) -> None:
    path = tmp_path / "engine.py"
    path.write_text(
        "import no_such_kernel\nSCALE = 3\n"
        "@no_such_kernel.compiled\ndef twice(x: no_such_kernel.Tensor): return 2 * SCALE * x\n"
        "class Rotary:\n    def angle(self, x): return x + 1\n"
        "def read(overrides):\n    if overrides:\n        found = 'read'\n"
    )
    assert cut(path, ["SCALE", "twice"], {})["twice"](5) == 30  # type: ignore[operator]
    assert cut(path, ["angle"], {}, inside="Rotary")["angle"](None, 1) == 2  # type: ignore[operator]
    assert run(block(path, "read", "overrides"), path, {"overrides": 1})["found"] == "read"
    with pytest.raises(LookupError, match=r"engine\.py has no thrice: another version than was read"):
        cut(path, ["thrice"], {})
    with pytest.raises(LookupError, match="has no read that asks for other: another version"):
        block(path, "read", "other")


def test_a_file_is_loaded_alone_with_its_imports_stubbed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setattr(sys, "modules", dict(sys.modules))
    (tmp_path / "rope.py").write_text("from .kernels import turn\ndef rotate(): return turn\n")
    stub("an_engine")
    stub("an_engine.kernels", turn=7)
    assert load_file(tmp_path / "rope.py", "an_engine.rope").rotate() == 7


def test_an_engine_whose_code_fails_is_told_by_its_last_line(tmp_path: Path) -> None:
    probe = Probe(root=str(tmp_path), config={}, overrides={}, rotary_dim=2, server_length=3, inputs=((0, 1),))
    with pytest.raises(EngineError, match=r"FileNotFoundError: .*rope\.py"):
        rotations("workers.parity.exllamav2_rotation", probe)


def test_the_cause_is_told_where_an_error_ends_in_advice(tmp_path: Path) -> None:
    program = "raise ImportError('hub>=0.34,<1.0 is required, but found hub==1.2.\\nTry: `pip install x -U`')"
    (tmp_path / "advising.py").write_text(program)
    with pytest.raises(EngineError, match=r"^ImportError: hub>=0\.34,<1\.0 is required, but found hub==1\.2\.$"):
        ask("advising", [], "", search_paths=[tmp_path])


def test_an_unzipped_engine_is_tried_with_what_lies_beside_it_where_the_installed_does_not_do(tmp_path: Path) -> None:
    for name, text in (
        ("a/an_engine", "import its_hub"),
        ("hub/its_hub", ""),
    ):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "__init__.py").write_text(text)
    (tmp_path / "a/asking.py").write_text(
        "import an_engine\n"
        "def rotate(probe): return [[[[1.0] * 32] * len(each), [[0.0] * 32] * len(each)] for each in probe.inputs]\n"
    )
    engine = ParityEngine(
        package="an_engine",
        distribution="an-engine",
        module="asking",
        settings=lambda factors, length: [Setting("", length, (length,))],
        imports=("an_engine",),
    )
    factors = factors_of()

    def verdict(engine: ParityEngine) -> str:
        (row,) = verify_engine(
            "an engine", engine, EnginePackage(tmp_path / "a/an_engine", "1"), factors,
            config={}, overrides={}, expected=windows(factors, "dual", {}, scaling="default"), folder=tmp_path,
        )  # fmt: skip
        return row.verdict

    assert verdict(engine) == f"{UNVERIFIED}ModuleNotFoundError: No module named 'its_hub'"
    assert not verdict(replace(engine, beside=("its_hub",))).startswith(UNVERIFIED)
