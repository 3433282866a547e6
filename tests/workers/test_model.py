"""Models loaded from folders and GGUF files, and one clear line for each that cannot be used."""

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertConfig, GPT2Config, LlamaConfig, PreTrainedConfig, T5Config

from tests.workers.llama_gguf import write_llama
from workers.attention import attention_implementation
from workers.geometry import RopeGeometry
from workers.model import LoadedModel, describe_model, load_model

SaveModel = Callable[[PreTrainedConfig], Path]
Load = Callable[[str], LoadedModel]


@pytest.fixture
def folder(model_folder: Callable[[str], Path], tmp_path: Path) -> Path:
    """A tiny Llama in a folder that a test may spoil."""
    return Path(shutil.copytree(model_folder("llama"), tmp_path / "model"))


def change_config(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def load_on_cpu(path: Path | str, **options: Any) -> LoadedModel:
    return load_model(str(path), dtype="float32", device="cpu", **options)


def message_of(path: Path | str, **options: Any) -> str:
    """The one line with which a model is refused."""
    with pytest.raises(ValueError) as refusal:
        load_model(str(path), **{"dtype": "float32", "device": "cpu", **options})
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_loaded_model_says_what_it_is(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="workers.model")
    loaded = load_on_cpu(folder)
    assert loaded.geometry == RopeGeometry(8, 1e4, 64)
    assert (loaded.dtype, loaded.device.type, loaded.attention) == (torch.float32, "cpu", "sdpa")
    assert not loaded.model.training
    assert not any(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.tokenizer("abc", add_special_tokens=False)["input_ids"] == [64, 65, 66]
    assert "LlamaForCausalLM in torch.float32 on cpu, attention by sdpa; rotary_dim 8, base 10000" in caplog.text


def test_a_description_says_the_same_without_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    described = describe_model(str(folder), original_length=32)
    assert described.geometry == RopeGeometry(8, 1e4, 32)
    assert described.tokenizer("abc", add_special_tokens=False)["input_ids"] == [64, 65, 66]
    with pytest.raises(ValueError, match=r"which is none"):
        describe_model(str(folder / "nowhere"))


def test_attention_softcapping_is_computed_and_not_left_out_where_a_forward_is_plain(load: Load) -> None:
    assert load("gemma2").model.config._attn_implementation == "eager"


def test_flash_attention_is_for_cuda_and_half_precision_only(load: Load) -> None:
    model_class = type(load("llama").model)
    assert attention_implementation(model_class, torch.device("cuda"), torch.float32) == "sdpa"
    assert attention_implementation(model_class, torch.device("cpu"), torch.bfloat16) == "sdpa"


def test_layer_types_that_keep_their_rotation_are_named(
    model_folder: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="workers.model")
    load_on_cpu(model_folder("gemma3"))
    assert "factors go to full_attention; sliding_attention keeps its rotation" in caplog.text


def test_a_saved_scaling_is_warned_about(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    change_config(folder, lambda config: config["rope_parameters"].update(rope_type="linear", factor=2.0))
    assert load_on_cpu(folder, original_length=32).geometry == RopeGeometry(8, 1e4, 32, "linear")
    assert "saved with a RoPE scaling (linear): rescale factors replace it" in caplog.text
    assert "taken to be 32 tokens" in caplog.text


def test_weights_are_bfloat16_where_asked_for(folder: Path) -> None:
    loaded = load_model(str(folder), dtype="bfloat16", device="cpu")
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.bfloat16}


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    message = message_of(tmp_path / "nowhere")
    assert message.startswith("--model must be a folder, a .gguf file, or a hub id that is in the local cache, got")
    assert "nowhere, which is none" in message


def test_a_hub_id_that_is_not_in_the_cache_is_refused() -> None:
    assert "got nobody/nothing, which is none" in message_of("nobody/nothing")


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    assert "must hold a config.json, got" in message_of(tmp_path)


def test_a_configuration_that_is_no_json_is_refused(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert message_of(folder).startswith(f"the model's configuration must be readable, got {folder}: ")


def test_a_configuration_with_a_value_of_a_wrong_type_is_refused(folder: Path) -> None:
    change_config(folder, lambda config: config.update(max_position_embeddings=None))
    assert "configuration must be readable" in message_of(folder)
    assert "max_position_embeddings" in message_of(folder)


def test_an_unknown_architecture_is_refused(folder: Path) -> None:
    change_config(folder, lambda config: config.update(model_type="unheard-of"))
    assert "the model's configuration must be readable" in message_of(folder)


@pytest.mark.parametrize("config", [GPT2Config(n_layer=1, n_embd=8, n_head=2, vocab_size=260), BertConfig()])
def test_a_model_without_rotation_is_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert "the model must have rotary position embeddings (RoPE)" in message_of(tmp_path)


def test_a_model_that_is_no_causal_lm_is_refused(tmp_path: Path) -> None:
    config = T5Config()
    config.rope_parameters = {"rope_type": "default", "rope_theta": 1e4}
    config.max_position_embeddings = 64
    config.save_pretrained(tmp_path)
    assert "the model must be a causal language model, got a t5 configuration" in message_of(tmp_path)


def test_an_unknown_original_length_says_which_flag_sets_it(folder: Path) -> None:
    # transformers would take Llama's default of 2048 without a word
    change_config(folder, lambda config: config.pop("max_position_embeddings"))
    message = message_of(folder)
    assert "the original window must be known, got none" in message
    assert message.endswith("Give the pre-training window in tokens with --original-length.")
    assert load_on_cpu(folder, original_length=64).geometry.original_length == 64


def test_weights_that_are_missing_are_not_made_up(save_model: SaveModel, folder: Path) -> None:
    change_config(folder, lambda config: config.update(num_hidden_layers=3))
    assert "must hold all of its weights, got" in message_of(folder)
    assert "without 9 of them (model.layers.2." in message_of(folder)


def test_weights_that_are_cut_off_are_refused(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert f"the model's weights must be readable, got {folder}: " in message_of(folder)


def test_weights_of_another_shape_are_refused(folder: Path) -> None:
    change_config(folder, lambda config: config.update(intermediate_size=40))
    assert "the model's weights must be readable" in message_of(folder)


def test_a_model_without_a_tokenizer_is_refused(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()
    assert f"the model's tokenizer must be readable, got {folder}: " in message_of(folder)


def test_a_precision_that_is_not_offered_is_refused(folder: Path) -> None:
    assert "--dtype must be one of float32, bfloat16, got int8" in message_of(folder, dtype="int8")


@pytest.mark.parametrize("device", ["cuda:99", "tpu", "cpu:1", "cuda:x"])
def test_a_device_that_is_not_there_is_refused(device: str, folder: Path) -> None:
    message = message_of(folder, device=device)
    assert "--device must be auto, cpu, or one of the" in message
    assert f"got {device}" in message


def test_a_gguf_file_gives_the_logits_of_the_weights_that_were_written(
    save_model: SaveModel, tmp_path: Path, input_ids: Tensor
) -> None:
    source = load_on_cpu(save_model(gguf_config()))
    file = tmp_path / "tiny.gguf"
    write_llama(source.model, file, tokenizer=source.tokenizer)
    for loaded in (load_on_cpu(file), load_on_cpu(tmp_path, gguf_file="tiny.gguf")):
        assert loaded.geometry == RopeGeometry(8, 5e5, 64)
        ids = loaded.tokenizer("magic 67", add_special_tokens=False)["input_ids"]
        assert loaded.tokenizer.decode(ids) == "magic 67"
        # Exact weights; only the order of sums may differ
        torch.testing.assert_close(loaded.model(input_ids).logits, source.model(input_ids).logits, rtol=0, atol=1e-4)


def test_a_missing_gguf_file_is_refused(tmp_path: Path, folder: Path) -> None:
    assert "the GGUF file must exist, got" in message_of(tmp_path / "none.gguf")
    assert f"{folder / 'none.gguf'}, which does not" in message_of(folder, gguf_file="none.gguf")


def test_a_gguf_file_that_is_none_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("once upon a time")
    assert "text.gguf" in message_of(tmp_path / "text.gguf")


@pytest.mark.slow
def test_a_real_gguf_model_loads_and_reads() -> None:
    path = os.environ.get("ROPEWALK_SMOLLM2")
    if path is None:
        pytest.skip("ROPEWALK_SMOLLM2 does not name the GGUF file of SmolLM2-135M-Instruct")
    loaded = load_model(path, dtype="bfloat16", device="cpu")
    assert loaded.geometry == RopeGeometry(64, 1e5, 8192)  # its model card
    ids = loaded.tokenizer("The capital of France is", return_tensors="pt").input_ids
    loaded.patch.check_effect(ids)
    assert loaded.tokenizer.decode(loaded.model(ids).logits[0, -1].argmax()) == " Paris"


def gguf_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=259,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        bos_token_id=256,
        eos_token_id=257,
    )


def test_several_devices_that_cannot_be_had_are_refused(folder: Path) -> None:
    assert "--device must be auto or cuda for a model on 2 GPUs, got cpu" in message_of(folder, num_devices=2)
    several = torch.cuda.device_count() + 2
    assert f"a model on {several} GPUs must see as many, got" in message_of(folder, num_devices=several, device="auto")
    assert "at least 1 device, got 0" in message_of(folder, num_devices=0)
