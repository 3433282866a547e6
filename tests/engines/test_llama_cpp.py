"""llama.cpp itself rotates with what is exported: its logits beside those of transformers. Run by `make engines`.

Mean absolute differences of logits. The right factors leave rounding, about 1e-5 in 32-bit floats; TOLERANCE allows
for other kernels. Other factors must be at least three times as far, and are some thousand times.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch

from results.export.engine import Mode
from results.export.gguf_file import read_gguf_factors, write_gguf
from rope.factors import RescaleFactors
from tests.engines.reference_gguf import BASE, REFERENCE, ROTARY_DIM, WINDOW, write_dequantised
from tests.workers.llama_gguf import write_llama
from workers.model import LoadedModel, load_model

llama_cpp = pytest.importorskip("llama_cpp", reason="needs llama-cpp-python: make engines")
pytestmark = pytest.mark.engines

Logits = npt.NDArray[np.float64]
TOLERANCE = 1e-3
MARGIN = 3
BELOW, ABOVE = 200, 700
TARGET = 4 * WINDOW
SMOLLM2 = os.environ.get("ROPEWALK_SMOLLM2_GGUF", "")
GGML_F32 = 0

_PAIRS = np.arange(ROTARY_DIM // 2) / (ROTARY_DIM // 2 - 1)
# Neither monotone nor one anywhere, so that order, index and direction all show.
FACTORS = RescaleFactors(
    values=tuple((1 + 3 * _PAIRS**1.5 + 0.3 * np.sin(11 * _PAIRS) ** 2).tolist()),
    short_values=tuple((1.05 + 0.25 * np.sin(3 * _PAIRS)).tolist()),
    rotary_dim=ROTARY_DIM,
    base=BASE,
    original_length=WINDOW,
    target_length=TARGET,
    attention_temperature=1.15,
    short_attention_temperature=1.15,
    method="by hand",
)


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model(str(REFERENCE), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def source(reference: LoadedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("reference") / "reference.gguf"
    write_llama(reference.model, file)
    return file


@pytest.fixture(scope="module")
def tokens(reference: LoadedModel) -> list[int]:
    text = (REFERENCE.parent / "tom_sawyer.txt").read_text(encoding="utf-8")[:6000]
    ids: list[int] = reference.tokenizer(text)["input_ids"][:ABOVE]
    assert len(ids) == ABOVE
    return ids


@pytest.fixture(params=["dual", "pinned"])
def mode(request: pytest.FixtureRequest) -> Mode:
    chosen: Mode = request.param
    return chosen


def export(source: Path, folder: Path, factors: RescaleFactors, mode: Mode = "dual") -> Path:
    write_gguf(source, folder / "scaled.gguf", factors, mode, force=False, in_place=False)
    return folder / "scaled.gguf"


def of_llama_cpp(file: Path, ids: Sequence[int], *, n_ctx: int, yarn_attn_factor: float = 1.0) -> Logits:
    """Return llama.cpp's logits, with a cache in 32-bit floats; a context is made as a server makes it, with -c."""
    model = llama_cpp.Llama(
        str(file),
        n_ctx=n_ctx,
        yarn_attn_factor=yarn_attn_factor,
        n_threads=1,
        n_threads_batch=1,
        type_k=GGML_F32,
        type_v=GGML_F32,
        logits_all=True,
        verbose=False,
    )
    try:
        model.eval(ids)
        return np.array(model.scores[: len(ids)], dtype=np.float64)
    finally:
        model.close()


def of_transformers(loaded: LoadedModel, ids: Sequence[int], factors: RescaleFactors | None) -> Logits:
    with loaded.patch, torch.inference_mode():
        if factors is not None:
            loaded.patch.install(factors)
        logits: Logits = loaded.model(input_ids=torch.tensor([list(ids)]), use_cache=False).logits[0].double().numpy()
    return logits


def distance(ours: Logits, theirs: Logits) -> float:
    return float(np.abs(ours - theirs).mean())


def short_of(factors: RescaleFactors) -> RescaleFactors:
    assert factors.short is not None
    return factors.short


def test_the_source_itself_is_the_reference_model(source: Path, reference: LoadedModel, tokens: list[int]) -> None:
    ids = tokens[:BELOW]
    assert distance(of_llama_cpp(source, ids, n_ctx=WINDOW), of_transformers(reference, ids, None)) < TOLERANCE


def test_logits_follow_transformers_with_the_short_list_below_the_border_and_with_the_long_one_above(
    mode: Mode, source: Path, reference: LoadedModel, tokens: list[int], tmp_path: Path
) -> None:
    file = export(source, tmp_path, FACTORS, mode)
    for num_tokens, n_ctx in ((BELOW, WINDOW), (ABOVE, TARGET)):
        ids = tokens[:num_tokens]
        ours = of_llama_cpp(file, ids, n_ctx=n_ctx)
        lists = [of_transformers(reference, ids, factors) for factors in (FACTORS, short_of(FACTORS))]
        long, short = (distance(ours, logits) for logits in lists)
        right, other = (short, long) if mode == "dual" and num_tokens == BELOW else (long, short)
        print(f"{mode}, {num_tokens} tokens: {right:.2e} from the right list, {other:.2e} from the other")
        assert right < TOLERANCE
        assert other > MARGIN * right


def test_the_list_is_chosen_by_the_length_of_the_context_and_not_by_that_of_the_prompt(
    source: Path, reference: LoadedModel, tokens: list[int], tmp_path: Path
) -> None:
    file = export(source, tmp_path, FACTORS)
    ids = tokens[:BELOW]
    long = of_transformers(reference, ids, FACTORS)
    assert distance(of_llama_cpp(file, ids, n_ctx=WINDOW + 1), long) < TOLERANCE
    assert distance(of_llama_cpp(file, ids, n_ctx=0), long) < TOLERANCE  # 0: what the file says, the target length


def test_a_window_that_is_no_multiple_of_256_takes_the_long_list_at_its_own_length(
    source: Path, reference: LoadedModel, tokens: list[int], tmp_path: Path
) -> None:
    factors = replace(FACTORS, original_length=500)
    file = export(source, tmp_path, factors)
    ids = tokens[:BELOW]
    assert distance(of_llama_cpp(file, ids, n_ctx=500), of_transformers(reference, ids, factors)) < TOLERANCE
    assert distance(of_llama_cpp(file, ids, n_ctx=256), of_transformers(reference, ids, short_of(factors))) < TOLERANCE


def test_the_option_that_the_notes_name_gives_the_original_model_back_at_another_temperature(
    source: Path, reference: LoadedModel, tokens: list[int], tmp_path: Path
) -> None:
    factors = replace(FACTORS, short_values=None, short_attention_temperature=1.0)
    notes = write_gguf(source, tmp_path / "warm.gguf", factors, "dual", force=False, in_place=False).notes
    option = next(note for note in notes if "yarn-attn-factor" in note).split("--yarn-attn-factor ")[1].split()[0]
    ids = tokens[:BELOW]
    plain = of_transformers(reference, ids, None)
    as_it_is = of_llama_cpp(tmp_path / "warm.gguf", ids, n_ctx=WINDOW)
    remedied = of_llama_cpp(tmp_path / "warm.gguf", ids, n_ctx=WINDOW, yarn_attn_factor=float(option))
    assert distance(remedied, plain) < TOLERANCE
    assert distance(as_it_is, plain) > MARGIN * TOLERANCE
    assert (
        distance(
            as_it_is, of_transformers(reference, ids, factors.with_values([1.0] * (ROTARY_DIM // 2), method="ones"))
        )
        < TOLERANCE
    )


def test_a_model_with_llama_3_1s_scaling_keeps_it_in_the_short_window(
    reference: LoadedModel, tokens: list[int], tmp_path: Path
) -> None:
    own = short_of(replace(FACTORS, short_attention_temperature=1.0))
    write_llama(reference.model, tmp_path / "llama31.gguf", rope_freqs=own.values)
    ids = tokens[:BELOW]
    before = of_llama_cpp(tmp_path / "llama31.gguf", ids, n_ctx=WINDOW)
    assert distance(before, of_transformers(reference, ids, own)) < TOLERANCE
    factors = replace(FACTORS, short_values=None, attention_temperature=1.0, short_attention_temperature=1.0)
    file = export(tmp_path / "llama31.gguf", tmp_path, factors)
    assert np.array_equal(of_llama_cpp(file, ids, n_ctx=WINDOW), before)
    long = of_transformers(reference, tokens, factors)
    assert distance(of_llama_cpp(file, tokens, n_ctx=TARGET), long) < TOLERANCE


@pytest.fixture(scope="module")
def smollm2() -> LoadedModel:
    if not SMOLLM2:
        pytest.skip("ROPEWALK_SMOLLM2_GGUF must name a GGUF of SmolLM2-135M")
    return load_model(SMOLLM2, dtype="float32", device="cpu")


@pytest.mark.parametrize("dequantised", [True, False], ids=["32-bit", "as it is"])
def test_smollm2_follows_transformers_on_both_sides_of_a_border_that_a_cpu_reaches(
    dequantised: bool, mode: Mode, smollm2: LoadedModel, tmp_path: Path
) -> None:
    source = Path(SMOLLM2)
    if dequantised:
        source = tmp_path / "float32.gguf"
        write_dequantised(Path(SMOLLM2), source)
    factors = for_smollm2(smollm2)
    file = export(source, tmp_path, factors, mode)
    assert read_gguf_factors(file).values == tuple(np.asarray(factors.values, dtype=np.float32).tolist())
    text = (REFERENCE.parent / "tom_sawyer.txt").read_text(encoding="utf-8")[:6000]
    tokens = smollm2.tokenizer(text)["input_ids"][:ABOVE]
    for num_tokens, n_ctx in ((300, 512), (ABOVE, 2048)):
        ids = tokens[:num_tokens]
        ours = of_llama_cpp(file, ids, n_ctx=n_ctx)
        long, short = (distance(ours, of_transformers(smollm2, ids, each)) for each in (factors, short_of(factors)))
        right, other = (short, long) if mode == "dual" and n_ctx == 512 else (long, short)
        print(f"{mode}, {num_tokens} tokens: {right:.2e} from the right list, {other:.2e} from the other")
        # llama.cpp multiplies 4-bit blocks by 8-bit activations, which moves logits far more than 32-bit rounding.
        assert right < TOLERANCE or not dequantised
        assert other > MARGIN * right


def for_smollm2(loaded: LoadedModel) -> RescaleFactors:
    num_pairs = loaded.geometry.rotary_dim // 2
    pairs = np.arange(num_pairs) / (num_pairs - 1)
    return replace(
        FACTORS,
        values=tuple((1.5 + 3 * pairs**1.5 + 0.3 * np.sin(11 * pairs) ** 2).tolist()),
        short_values=tuple((1.05 + 0.25 * np.sin(3 * pairs)).tolist()),
        rotary_dim=2 * num_pairs,
        base=loaded.geometry.base,
        original_length=512,
        target_length=2048,
    )
