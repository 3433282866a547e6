from pathlib import Path

import pytest

from rope.factors import RescaleFactors
from search.verify_command import run_verification
from search.verify_config import VerifyConfig
from tests.search.running import MODEL


def saved(folder: Path, temperature: float = 1.0, *, base: float = 500.0, start_tokens: int = 0) -> str:
    factors = RescaleFactors(
        values=tuple(1.0 + 3.0 * (pair / 15) ** 1.5 for pair in range(16)),
        rotary_dim=32,
        base=base,
        original_length=256,
        target_length=1024,
        attention_temperature=temperature,
        num_start_tokens=start_tokens,
        method="published",
    )
    factors.save(folder / "factors.json")
    return str(folder / "factors.json")


def test_transformers_with_a_model_is_the_same_at_temperature_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VerifyConfig(factors=saved(tmp_path), model=str(MODEL), engines="transformers")
    assert run_verification(config) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.endswith("same")]
    found = [row[row.index("short" if "short" in row else "long") - 1 :] for row in rows]
    assert [row[:2] for row in found] == [["256", "short"], ["257", "long"], ["1024", "long"]] * 2
    assert [row[2:] for row in found[3:]] == [["equal", "same"]] * 3  # the logits, bit for bit


def test_one_temperature_for_both_windows_ends_with_1_and_pinned_factors_with_0(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, 1.2)
    assert run_verification(VerifyConfig(factors=path, engines="transformers")) == 1
    assert "differs: cos and sin times 1.2000 instead of 1.0000" in " ".join(capsys.readouterr().out.split())
    assert run_verification(VerifyConfig(factors=str(tmp_path), engines="transformers", mode="pinned")) == 0


def test_what_cannot_be_verified_says_why_and_is_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = VerifyConfig(factors=saved(tmp_path), engines="tensorrt-llm,llama.cpp,exllamav2", packages=str(tmp_path))
    assert run_verification(config) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "tensorrt-llm not verified here: its rotation is in kernels of a package that needs its GPU" in text
    assert "not verified here: its rotation shows in logits alone. Give --model FILE.gguf" in text
    assert "not verified here: pip install exllamav2, or unzip its wheel and give --packages" in text


def test_factors_that_an_engine_cannot_be_given_are_not_verified(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = saved(tmp_path, 0.9)
    assert run_verification(VerifyConfig(factors=path, engines="mlx")) == 0
    assert "mlx not verified here: " in " ".join(capsys.readouterr().out.split())


def test_factors_that_no_engine_can_rotate_with_are_refused(tmp_path: Path) -> None:
    path = saved(tmp_path, start_tokens=4)
    with pytest.raises(ValueError, match="exported factors must have num_start_tokens 0, got 4: no engine keeps"):
        run_verification(VerifyConfig(factors=path, engines="tensorrt-llm,llama.cpp"))


def test_bad_input_is_refused(tmp_path: Path) -> None:
    path = saved(tmp_path)
    with pytest.raises(ValueError, match=r"--engines must be among transformers, vllm, .*, got tgi\. Correct it"):
        run_verification(VerifyConfig(factors=path, engines="tgi"))
    with pytest.raises(ValueError, match=r"--packages must be a folder of unzipped wheels, got .*/none"):
        run_verification(VerifyConfig(factors=path, packages=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="--engines must be distinct, got vllm, vllm"):
        VerifyConfig(factors=path, engines="vllm,vllm")
    (tmp_path / "other").mkdir()
    other = saved(tmp_path / "other", base=10_000.0)
    with pytest.raises(ValueError, match="factors must be for rotary_dim 32 and base 500 as the model has them"):
        run_verification(VerifyConfig(factors=other, model=str(MODEL), engines="transformers"))
