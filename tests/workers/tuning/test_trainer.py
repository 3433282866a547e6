"""Training: the loss that is minimised, the curve after a kill, and what stops a run."""

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from copy import deepcopy
from importlib.util import find_spec
from math import cos, isfinite, pi
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM

from results.tuning import read_training_log
from tests.workers.tuning.runs import REFERENCE, RandomPacks, curve, factors, run, small
from workers.rope_patch import RopePatch
from workers.tuning.packs import Pack
from workers.tuning.trainer import train
from workers.tuning.training_config import LoraConfig
from workers.tuning.window_model import load_trainable

ROUNDING = 1e-5
"""Relative: float32 sums of some hundred terms in another order."""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of six steps."""
    folder = tmp_path_factory.mktemp("undisturbed")
    run(folder, small())
    return folder


def test_a_step_minimises_the_mean_over_all_tokens_of_its_micro_batches(undisturbed: Path) -> None:
    """A plain loop of torch over whole documents, without packs, gives the first losses and the gradient's norm."""
    model: Any = AutoModelForCausalLM.from_pretrained(REFERENCE, dtype=torch.float32, attn_implementation="sdpa")
    patch, sums, counts = RopePatch(model), {"short": 0.0, "long": 0.0}, {"short": 0, "long": 0}
    packs = [RandomPacks(4)[index] for index in range(4)]
    num_tokens = sum(int((pack.labels != -100).sum()) for pack in packs)
    for pack in packs:
        patch.restore()
        if pack.window == "long":
            patch.install(factors())
        for start, end in zip(pack.starts[:-1], pack.starts[1:], strict=True):
            ids = torch.from_numpy(pack.token_ids[start:end])[None]
            loss = functional.cross_entropy(model(ids).logits[0, :-1], ids[0, 1:], reduction="sum")
            (loss / num_tokens).backward()  # type: ignore[no-untyped-call]
            sums[pack.window] += loss.item()
            counts[pack.window] += ids.shape[1] - 1
    norm = torch.linalg.vector_norm(torch.stack([weight.grad.norm() for weight in model.parameters()])).item()
    rows: Any = read_training_log(undisturbed).itertuples()
    first = {row.window: row for row in rows if row.step == 1}
    for window, row in first.items():
        assert row.num_tokens == counts[window]
        assert row.sum_nll == pytest.approx(sums[window], rel=ROUNDING)
        assert row.grad_norm == pytest.approx(norm, rel=1e-4)  # of a sum over 0.5 M squares


def test_the_learning_rate_warms_up_and_falls_as_a_cosine_to_zero(undisturbed: Path) -> None:
    log = read_training_log(undisturbed).drop_duplicates("step")
    falling = [(1 + cos(pi * step / 4)) / 2 for step in range(4)]
    assert log["learning_rate"].to_numpy() == pytest.approx(1e-3 * np.array([0, 0.5, *falling]))


def test_training_lowers_the_loss_of_both_windows(undisturbed: Path) -> None:
    log = read_training_log(undisturbed)
    for _, rows in log.groupby("window"):
        per_token = (rows["sum_nll"] / rows["num_tokens"]).to_numpy()
        assert per_token[-1] < per_token[0]


def test_plain_transformers_loads_what_is_saved_in_the_precision_it_came_in(undisturbed: Path) -> None:
    loaded: Any = AutoModelForCausalLM.from_pretrained(undisturbed / "model", output_loading_info=True)
    model, info = loaded
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert model.dtype == torch.bfloat16
    size = (REFERENCE / "model.safetensors").stat().st_size
    assert (undisturbed / "model" / "model.safetensors").stat().st_size == pytest.approx(size, rel=0.01)
    assert model.config.architectures == ["LlamaForCausalLM"]
    before: Any = AutoModelForCausalLM.from_pretrained(REFERENCE)
    assert not torch.equal(model.get_input_embeddings().weight, before.get_input_embeddings().weight)


def test_what_is_saved_is_configured_as_the_model_that_came_in(undisturbed: Path) -> None:
    """The Trainer turns use_cache off, with which the saved model would give no cache to its user."""
    before, after = (
        json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for folder in (REFERENCE, undisturbed / "model")
    )
    before.pop("transformers_version")
    after.pop("transformers_version")
    assert after == before


def test_activation_checkpointing_computes_the_same_curve(undisturbed: Path, tmp_path: Path) -> None:
    """Layers that are computed once more in the backward pass must rotate as in the forward pass."""
    run(tmp_path, small(activation_checkpointing=True))
    assert curve(tmp_path) == curve(undisturbed)


def test_micro_batches_of_several_packs_give_the_same_first_step(tmp_path: Path) -> None:
    for size in (1, 2):
        folder = tmp_path / str(size)
        folder.mkdir()
        train(
            load_trainable(str(REFERENCE)),
            RandomPacks(8, block=2),
            factors(),
            small(num_steps=1, micro_batches_per_step=8 // size, warmup=0),
            folder=folder,
            save_to=folder / "model",
            micro_batch_size=size,
            device="cpu",
            progress=False,
        )
    for one, two in zip(curve(tmp_path / "1"), curve(tmp_path / "2"), strict=True):
        assert one[:2] == two[:2]
        assert one[2:] == pytest.approx(two[2:], rel=1e-4)  # other kernels sum in another order


def test_a_finished_run_that_is_resumed_takes_no_step(undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "again"
    shutil.copytree(undisturbed, folder)
    before = curve(folder)
    assert run(folder, small(), resume=True).first_step == 7
    assert curve(folder) == before


def test_a_run_resumes_from_the_newest_whole_checkpoint_with_the_same_curve(undisturbed: Path, tmp_path: Path) -> None:
    """As after a kill during the checkpoint of step 6: rows of steps 5 and 6 are there, the checkpoint is not whole."""
    folder = tmp_path / "torn"
    shutil.copytree(undisturbed, folder)
    (folder / "checkpoints" / "checkpoint-6" / "complete.json").unlink()
    (folder / "checkpoints" / "checkpoint-6" / "model.safetensors").write_bytes(b"torn")
    assert run(folder, small(), resume=True).first_step == 5
    assert curve(folder) == curve(undisturbed)
    for name in ("model/model.safetensors", "checkpoints/checkpoint-6/optimizer.pt"):
        assert (folder / name).read_bytes() == (undisturbed / name).read_bytes(), name


def test_another_configuration_is_not_resumed(undisturbed: Path) -> None:
    with pytest.raises(ValueError, match=r"got others for training\.learning_rate \(0\.001 before, 0\.002 now\)"):
        run(undisturbed, small(learning_rate=2e-3), resume=True)


class NanPacks(RandomPacks):
    """Its pack 14 is of a token that no other pack has."""

    def __getitem__(self, index: int) -> Pack:  # type: ignore[override]
        pack = super().__getitem__(index)
        if index == 14:
            pack.token_ids[:] = 1023
        return pack


def test_a_loss_that_is_no_number_stops_the_run_at_the_last_good_checkpoint(tmp_path: Path) -> None:
    trainable = load_trainable(str(REFERENCE))
    model: Any = trainable.model
    weight = model.get_input_embeddings().weight
    with torch.no_grad():
        weight[1023] = torch.nan
    model.config.tie_word_embeddings = False
    model.lm_head.weight = torch.nn.Parameter(torch.nan_to_num(deepcopy(weight.detach())))
    with pytest.raises(ValueError) as caught:
        train(
            trainable,
            NanPacks(100),
            factors(),
            small(),
            folder=tmp_path,
            save_to=tmp_path / "model",
            device="cpu",
            progress=False,
        )
    assert str(caught.value) == (
        "the loss must be a number, got none for the packs from 14 on at step 4. The checkpoint of step 2 is whole. "
        "Lower training.learning_rate or raise training.warmup, or look at these packs."
    )
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["checkpoint-2"]
    assert not (tmp_path / "model").exists()
    assert set(read_training_log(tmp_path)["step"]) == {1, 2, 3}


@pytest.fixture
def no_file_above(tmp_path: Path) -> Iterator[int]:
    """Bytes that a file may have: those of the weights, not those of the optimizer."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    limit = 3_000_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    yield limit
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_disk_that_fills_during_a_checkpoint_leaves_the_one_before(
    undisturbed: Path, tmp_path: Path, no_file_above: int
) -> None:
    assert (undisturbed / "checkpoints/checkpoint-4/model.safetensors").stat().st_size < no_file_above
    folder = tmp_path / "full"
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    shutil.copytree(undisturbed, folder)
    shutil.rmtree(folder / "checkpoints" / "checkpoint-6")
    resource.setrlimit(resource.RLIMIT_FSIZE, (no_file_above, resource.RLIM_INFINITY))
    with pytest.raises(OSError) as caught:
        run(folder, small(), resume=True)
    message = str(caught.value)
    assert message.startswith("the checkpoint of step 6 must be written whole, got: ")
    assert message.endswith("Free space and resume. The checkpoint of step 4 is whole.")
    assert "\n" not in message
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["checkpoint-4"]
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run(folder, small(), resume=True)
    assert curve(folder) == curve(undisturbed)


@pytest.mark.skipif(find_spec("peft") is None, reason="adapters need peft")
def test_adapters_lower_the_loss_resume_and_are_merged_into_what_is_saved(tmp_path: Path) -> None:
    config = small(lora=LoraConfig(r=4, alpha=8), learning_rate=2e-2)
    run(tmp_path / "a", config)
    log = read_training_log(tmp_path / "a")
    per_token = (log["sum_nll"] / log["num_tokens"]).to_numpy()
    assert per_token[-2:].max() < per_token[:2].min()
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    (tmp_path / "b" / "checkpoints" / "checkpoint-6" / "complete.json").unlink()
    assert run(tmp_path / "b", config, resume=True).first_step == 5
    assert curve(tmp_path / "b") == curve(tmp_path / "a")
    before: Any = AutoModelForCausalLM.from_pretrained(REFERENCE)
    after: Any = AutoModelForCausalLM.from_pretrained(tmp_path / "a" / "model")
    changed = {
        name.split(".")[-2]
        for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
        if not torch.equal(old, new)
    }
    assert changed == {"q_proj", "k_proj", "v_proj", "o_proj"}


@pytest.mark.skipif(find_spec("peft") is None, reason="adapters need peft")
def test_modules_that_a_model_does_not_have_get_no_adapter(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.lora\.targets must name modules of the model, got: .*absent"):
        run(tmp_path, small(lora=LoraConfig(targets=("absent",))))


def test_too_few_packs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the stream must have 24 packs for 6 steps of 4 x 1, got 20"):
        run(tmp_path, small(), packs=RandomPacks(20))


def test_micro_batches_of_both_windows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a micro-batch must have packs of one window, got both for the packs from 0"):
        train(
            load_trainable(str(REFERENCE)),
            RandomPacks(100),
            factors(),
            small(),
            folder=tmp_path,
            save_to=tmp_path / "model",
            micro_batch_size=2,
            device="cpu",
            progress=False,
        )


def test_shared_packs_without_shared_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.context_parallel must come with training\.shard"):
        run(tmp_path, small(context_parallel=2))


def test_shards_of_a_single_process_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"training\.shard must have several processes to share weights, got one"):
        run(tmp_path, small(shard=True))


@pytest.mark.timeout(900)
@pytest.mark.slow  # starts python with torch three times
def test_a_run_that_is_killed_again_and_again_has_the_curve_of_an_undisturbed_one(tmp_path: Path) -> None:
    steps = 12
    run(tmp_path / "undisturbed", small(num_steps=steps))
    folder, rng = tmp_path / "killed", np.random.default_rng(0)
    command = [sys.executable, "-m", "tests.workers.tuning.runs", str(folder), str(steps)]
    for low, high in ((3, 7), (7, 11)):
        process = subprocess.Popen(command, cwd=Path(__file__).parents[3], stderr=subprocess.DEVNULL)
        last = int(rng.integers(low, high))
        while not len(log := read_training_log(folder)) or log["step"].max() < last:
            assert process.poll() is None, "it must be killed, not end"
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command, cwd=Path(__file__).parents[3], check=True)
    assert curve(folder) == curve(tmp_path / "undisturbed")
    weights = [path / "model" / "model.safetensors" for path in (folder, tmp_path / "undisturbed")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_every_number_of_a_log_is_finite(undisturbed: Path) -> None:
    log = read_training_log(undisturbed)
    assert all(isfinite(number) for number in log.select_dtypes("number").to_numpy().ravel())
