"""`ropewalk export`: what is written loads and computes what Ropewalk does, and what cannot be exported is refused."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedModel, set_seed
from transformers.generation.utils import GenerateDecoderOnlyOutput

from rope.factors import RescaleFactors
from rope.methods import METHODS
from search.cli import main
from workers.decoding import Decoding
from workers.generate import generate
from workers.rope_patch import RopePatch

REFERENCE = Path(__file__).parents[2] / "workers" / "reference" / "model"
WINDOW = 256


@pytest.fixture(autouse=True)
def module_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the copies that transformers makes of a folder's code out of the home directory."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def factors() -> RescaleFactors:
    """Factors for the reference model, at a temperature that is no formula's."""
    return METHODS["yarn"](32, 500.0, original_length=WINDOW, target_length=4 * WINDOW).with_temperature(1.2)


@pytest.fixture
def factors_file(tmp_path: Path, factors: RescaleFactors) -> Path:
    factors.save(tmp_path / "factors.json")
    return tmp_path / "factors.json"


def export(factors_file: Path, engine: str, out: Path, *options: str, model: Path | None = REFERENCE) -> int:
    named = [] if model is None else [f"--model={model}"]
    return main(["export", f"--factors={factors_file}", f"--to={engine}", f"--out={out}", *named, *options])


def loaded(folder: Path, *, trusted: bool = False) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        folder, trust_remote_code=trusted or None, dtype=torch.float32
    )
    return model


def token_ids(num_tokens: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(2, 1000, (1, num_tokens), generator=generator)


@torch.no_grad()
def logits(model: PreTrainedModel, num_tokens: int) -> Tensor:
    output: Tensor = model(input_ids=token_ids(num_tokens)).logits
    return output


def generated(
    model: PreTrainedModel, input_ids: Tensor, num_new_tokens: int, **options: object
) -> GenerateDecoderOnlyOutput:
    """Return what transformers' own greedy `generate` gives."""
    output: GenerateDecoderOnlyOutput = model.generate(  # type: ignore[operator]
        input_ids,
        max_new_tokens=num_new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
        **options,
    )
    return output


def error(capsys: pytest.CaptureFixture[str]) -> str:
    output, errors = capsys.readouterr()
    assert output == ""
    assert errors.count("\n") == 1
    return errors.removeprefix("ropewalk: error: ").rstrip("\n")


def tiny_llama(folder: Path) -> None:
    set_seed(0)
    config = LlamaConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        max_position_embeddings=WINDOW,
        rope_parameters={"rope_type": "default", "rope_theta": 500.0},
        architectures=["LlamaForCausalLM"],
    )
    LlamaForCausalLM(config).save_pretrained(folder)


@pytest.fixture(params=["reference", "tiny"])
def model_folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    if request.param == "reference":
        return REFERENCE
    tiny_llama(tmp_path / "tiny")
    return tmp_path / "tiny"


def test_the_patched_model_is_the_original_inside_its_window_and_ropewalks_beyond_bit_for_bit(
    tmp_path: Path, factors_file: Path, factors: RescaleFactors, model_folder: Path
) -> None:
    options = ("--weights=link", "--short-temperature=patch")
    assert export(factors_file, "transformers", tmp_path / "out", *options, model=model_folder) == 0
    patched, original = loaded(tmp_path / "out", trusted=True), loaded(model_folder)
    for num_tokens in (1, WINDOW - 1, WINDOW):
        assert torch.equal(logits(patched, num_tokens), logits(original, num_tokens))
    with RopePatch(original) as patch:
        patch.install(factors)
        for num_tokens in (WINDOW + 1, 2 * WINDOW):
            assert torch.equal(logits(patched, num_tokens), logits(original, num_tokens))
    assert torch.equal(logits(patched, 10), logits(original, 10))


def test_the_patched_model_generates_across_the_border_what_ropewalk_does(
    tmp_path: Path, factors_file: Path, factors: RescaleFactors, model_folder: Path
) -> None:
    options = ("--weights=copy", "--short-temperature=patch")
    assert export(factors_file, "transformers", tmp_path / "out", *options, model=model_folder) == 0
    patched = loaded(tmp_path / "out", trusted=True)
    prompts = [token_ids(WINDOW - 10)[0], token_ids(WINDOW)[0], token_ids(WINDOW + 5)[0]]
    expected = generate(
        loaded(model_folder),
        [ids.numpy() for ids in prompts],
        Decoding(num_new_tokens=24, stop_token_ids=()),
        long=factors,
    )
    for ids, written in zip(prompts, expected, strict=True):
        found = generated(patched, ids[None], 24).sequences
        assert found[0, len(ids) :].tolist() == written.token_ids
    # Rows of one batch that are padded on the left cross together
    batch_BT = torch.stack([prompts[0], prompts[0]])
    padding_BT = torch.zeros(2, 6, dtype=torch.long)
    mask_BT = torch.cat([padding_BT, torch.ones_like(batch_BT)], dim=1)
    found = generated(patched, torch.cat([padding_BT, batch_BT], dim=1), 24, attention_mask=mask_BT).sequences
    assert found[0, mask_BT.shape[1] :].tolist() == expected[0].token_ids


def test_without_trust_the_patched_folder_loads_as_transformers_own_class(tmp_path: Path, factors_file: Path) -> None:
    export(factors_file, "transformers", tmp_path / "out", "--weights=link", "--short-temperature=patch")
    assert type(loaded(tmp_path / "out")) is LlamaForCausalLM


def test_what_the_patch_is_for_plain_transformers_does_otherwise(tmp_path: Path, factors_file: Path) -> None:
    export(factors_file, "transformers", tmp_path / "out", "--weights=link", "--short-temperature=patch")
    plain, patched = loaded(tmp_path / "out"), loaded(tmp_path / "out", trusted=True)
    assert not torch.equal(logits(plain, WINDOW), logits(patched, WINDOW))
    assert torch.equal(logits(plain, WINDOW + 1), logits(patched, WINDOW + 1))
    # The last logits of a cache that was filled before the border: keys turned by both lists, and by one
    ids = token_ids(WINDOW + 4)
    last = []
    for model in (plain, patched):
        filled = generated(model, ids[:, :WINDOW], 1).past_key_values
        found = generated(model, ids, 1, past_key_values=filled).logits
        assert found is not None
        last.append(found[0])
    whole = logits(patched, WINDOW + 4)[:, -1]
    # Rounding of sums in another order, and not that of other keys
    torch.testing.assert_close(last[1], whole, rtol=1e-4, atol=1e-4)
    assert (last[0] - whole).abs().max() > 0.1


@pytest.mark.parametrize("weights", ["link", "copy"])
def test_the_whole_folder_loads_with_tokenizer_and_weights(tmp_path: Path, factors_file: Path, weights: str) -> None:
    assert export(factors_file, "transformers", tmp_path / "out", f"--weights={weights}") == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {path.name for path in REFERENCE.iterdir()}
    assert AutoTokenizer.from_pretrained(tmp_path / "out")("needle")["input_ids"]
    assert logits(loaded(tmp_path / "out"), WINDOW + 1).isfinite().all()


def test_the_output_says_files_steps_and_what_is_lost(
    tmp_path: Path, factors_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(factors_file, "vllm", tmp_path / "out folder") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "vLLM, dual: 256 to 1024 tokens, 16 factors, attention temperature 1.2"
    assert lines[1] == f"wrote {tmp_path}/out folder/vllm_overrides.json"
    assert lines[-1] == (
        f"next: vllm serve {REFERENCE} --max-model-len 1024 "
        f"--hf-overrides \"$(cat '{tmp_path}/out folder'/vllm_overrides.json)\""
    )
    assert any(line.endswith("by needle perplexity there: not measured") for line in lines)


def test_printed_commands_name_the_folders_that_a_tilde_stands_for(
    tmp_path: Path, factors_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    tiny_llama(tmp_path / "tiny")
    capsys.readouterr()
    assert export(factors_file, "vllm", Path("~/out"), model=Path("~/tiny")) == 0
    command = capsys.readouterr().out.splitlines()[-1]
    assert "~" not in command
    assert f"vllm serve {tmp_path}/tiny " in command
    assert f"$(cat {tmp_path}/out/vllm_overrides.json)" in command


def test_what_is_there_is_refused_and_with_force_replaced(
    tmp_path: Path, factors_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    (out / "config.json").write_text("older")
    assert export(factors_file, "transformers", out) == 2
    assert error(capsys).startswith(f"--out must hold none of the files that are written, got {out} with config.json.")
    assert (out / "config.json").read_text() == "older"
    assert export(factors_file, "transformers", out, "--force") == 0
    assert json.loads((out / "config.json").read_text())["max_position_embeddings"] == 4 * WINDOW
    assert (out / "notes.txt").read_text() == "mine"


def test_the_models_own_folder_is_no_target_even_with_force(
    tmp_path: Path, factors_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_llama(tmp_path / "tiny")
    capsys.readouterr()
    before = (tmp_path / "tiny" / "config.json").read_bytes()
    assert export(factors_file, "transformers", tmp_path / "tiny", "--force", model=tmp_path / "tiny") == 2
    assert error(capsys).startswith("--out must be another folder than the model's own, got ")
    assert (tmp_path / "tiny" / "config.json").read_bytes() == before


def test_a_target_that_cannot_be_written_to_is_refused(
    tmp_path: Path, factors_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "taken" / "config.json").mkdir(parents=True)
    (tmp_path / "shut").mkdir(mode=0o555)
    for out in (tmp_path / "file" / "out", Path("/proc/ropewalk"), tmp_path / "taken", tmp_path / "shut"):
        if out == tmp_path / "shut" and os.access(out, os.W_OK):
            continue  # root may write anywhere
        assert export(factors_file, "transformers", out, "--force") == 2
        assert error(capsys).startswith(f"--out must be a folder that can be written to, got {out}: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rotary_dim": 64, "values": (1.0,) * 32}, "factors must be for rotary_dim 32 and base 500 as the model has"),
        (
            {"base": 10_000.0},
            "factors must be for rotary_dim 32 and base 500 as the model has them, got rotary_dim 32",
        ),
        ({"num_start_tokens": 4}, "exported factors must have num_start_tokens 0, got 4: no engine keeps"),
    ],
)
def test_factors_that_are_not_for_the_model_are_refused(
    tmp_path: Path,
    factors: RescaleFactors,
    change: dict[str, object],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    replace(factors, **change).save(tmp_path / "other.json")  # type: ignore[arg-type]
    assert export(tmp_path / "other.json", "transformers", tmp_path / "out") == 2
    assert error(capsys).startswith(message)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "config.json must be JSON, got text that is not"),
        ('{"text_config": {}}', "the model must keep its rotation at the top of config.json, got"),
        ('{"text_config": {}}', 'inside its text_config by hand; as overrides: {"text_config": {...}}.'),
        ('{"model_type": "gpt2"}', "the model must have rotary position embeddings (RoPE)"),
        (
            '{"model_type": "gemma3_text", "head_dim": 32, "layer_types": ["sliding_attention", "full_attention"], '
            '"num_hidden_layers": 2}',
            "the model must rotate alike in all layers, got",
        ),
        (None, "the model must have a readable config.json, got: No such file or directory."),
    ],
)
def test_models_that_no_engine_reads_factors_for_are_refused(
    tmp_path: Path, factors_file: Path, config: str | None, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model").mkdir()
    if config is not None:
        (tmp_path / "model" / "config.json").write_text(config)
    assert export(factors_file, "transformers", tmp_path / "out", model=tmp_path / "model") == 2
    assert message in error(capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to=tgi", "--out=out"], "--to must be one of transformers, vllm, sglang, llama.cpp, "),
        (["--to=vllm"], "an export must have --out or --in-place, got neither. Give one of them."),
        (
            ["--to=llama.cpp", "--out=out", "--in-place", "--model=m"],
            "an export must have --out or --in-place, got both",
        ),
        (["--to=vllm", "--in-place"], "--in-place must come with --to llama.cpp, got vllm. Give --out."),
        (
            ["--to=vllm", "--out=out", "--short-temperature=patch"],
            "--short-temperature patch must come with --to",
        ),
        (["--to=ollama", "--out=out"], "--to ollama must come with --model, a .gguf file, got none. Give it."),
        (
            ["--to=mlx", "--out=out", "--weights=link"],
            "--weights link must come with --model and an engine",
        ),
        (
            ["--to=vllm", "--out=out", "--model=m", "--weights=copy"],
            "--weights copy must come with --model and an",
        ),
        (
            ["--to=vllm", "--out=out", "--model=m.GGUF"],
            "--model must be a folder or hub id for this engine, got",
        ),
        (
            ["--to=vllm", "--out=out", "--model=no/such"],
            "--model must be a folder, or a hub id that is in",
        ),
    ],
)
def test_settings_that_cannot_be_used_are_refused(
    factors_file: Path, tmp_path: Path, options: list[str], message: str,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    assert main(["export", f"--factors={factors_file}", *options]) == 2
    assert message in error(capsys)
    assert not (tmp_path / "out").exists()
