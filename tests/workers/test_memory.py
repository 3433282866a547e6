"""Memory of a forward: by hand, as torch allocates it, and a document that cannot fit told before anything is run."""

import json
import logging
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    MixtralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from needles.document import NeedleDocument
from rope.factors import RescaleFactors
from tests.workers.conftest import SIZES
from workers.attention import PREFIX, register
from workers.attention_kernels import sdpa
from workers.memory import (
    PIECE_BYTES,
    activation_bytes,
    available_bytes,
    check_memory,
    forward_bytes,
    host_bytes,
    piece_length,
)
from workers.model import LoadedModel
from workers.scoring import NeedleScoring
from workers.trimmed import Trim, trimmed_forward

NUM_KEPT = 32
LLAMA3_8B: dict[str, Any] = {
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}

Load = Callable[[str], LoadedModel]
MakeFactors = Callable[..., RescaleFactors]


def without_weights(config: PreTrainedConfig, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype)  # type: ignore[no-untyped-call]
    return model


@pytest.fixture
def llama3_8b(monkeypatch: pytest.MonkeyPatch) -> PreTrainedModel:
    """LLaMA3-8B without its weights, in pieces of a GPU."""
    monkeypatch.setitem(PIECE_BYTES, "meta", PIECE_BYTES["cuda"])
    return without_weights(LlamaConfig(**LLAMA3_8B))


def test_activations_of_a_layer_of_llama3_8b_by_hand(llama3_8b: PreTrainedModel) -> None:
    # Queries, keys, values, attention output; gate, up, down: 43,008 numbers of 2 bytes; a norm's 4 copies in float32
    widths = 4096 + 1024 + 1024 + 4096 + 14336 + 14336 + 4096
    assert activation_bytes(llama3_8b) == 2 * widths + 4 * 4 * 4096 == 151_552
    # 3 GiB hold 21,254 tokens
    assert piece_length(llama3_8b, 1) == 16_384
    assert [piece_length(llama3_8b, num) for num in (2, 3, 4, 1000)] == [8192, 4096, 4096, 256]


@pytest.mark.parametrize(
    ("num_tokens", "gigabytes"),
    [
        # Hidden states 1.07, keys and values of one layer 0.54, angles 0.27, a piece's activations 2.48, logits 0.06
        (131_072, 4.42),
        # 8 times all but the piece and the logits
        (1_048_576, 17.57),
    ],
)
def test_a_trimmed_forward_of_llama3_8b_by_hand(llama3_8b: PreTrainedModel, num_tokens: int, gigabytes: float) -> None:
    per_token = 2 * 4096 + 2 * 2 * 8 * 128 + 128 * (2 * 2 + 3 * 4)
    expected = num_tokens * per_token + 16_384 * 151_552 + NUM_KEPT * 128_256 * (2 + 3 * 4)
    found = forward_bytes(llama3_8b, num_tokens, num_kept=NUM_KEPT, is_trimmed=True)
    assert found == expected
    assert found / 1e9 == pytest.approx(gigabytes, abs=0.005)


def test_llama3_8b_reads_128k_tokens_on_a_card_of_40_gb_and_a_million_on_one_of_141_gb(
    llama3_8b: PreTrainedModel,
) -> None:
    weights = 16.1e9

    def needed(num_tokens: int, *, is_trimmed: bool) -> float:
        return weights + forward_bytes(llama3_8b, num_tokens, num_kept=NUM_KEPT, is_trimmed=is_trimmed)

    assert needed(131_072, is_trimmed=True) <= 40e9
    assert needed(1_048_576, is_trimmed=True) <= 141e9
    # 178 GB of activations alone
    assert needed(1_048_576, is_trimmed=False) > 141e9


def test_tokens_that_go_to_two_of_eight_experts_have_the_activations_of_two() -> None:
    sizes = SIZES | {"num_experts_per_tok": 2}
    few, many = (without_weights(MixtralConfig(**sizes, num_local_experts=number)) for number in (4, 8))
    # Scores of the experts are the one thing of which there is one for each: 4 more numbers of 2 bytes
    assert activation_bytes(many) == activation_bytes(few) + 4 * 2
    # By hand: attention 32 + 16 + 16 + 32, gates of 8, gate and up of 48 together and down of 32 in 2 experts
    assert activation_bytes(many) == 2 * (96 + 8 + 2 * (2 * 48 + 32)) + 4 * 4 * 32


@pytest.fixture(scope="module")
def small() -> PreTrainedModel:
    """A model whose activations outweigh the masks of attention on a CPU; 2,048 tokens take a second."""
    config = LlamaConfig(
        vocab_size=260,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=4096,
    )
    register({"sdpa": sdpa})
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    model.eval()  # type: ignore[no-untyped-call]
    return model


def allocated(compute: Callable[[], object], folder: Path) -> tuple[int, int]:
    """Return the most memory that torch's allocator had given out at a time beside what there was, and what is left."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        compute()
    profiler.export_chrome_trace(str(folder / "trace.json"))
    events = json.loads((folder / "trace.json").read_text(encoding="utf-8"))["traceEvents"]
    taken = sorted((event["ts"], event["args"]["Bytes"]) for event in events if event["name"] == "[memory]")
    in_use = np.cumsum([num_bytes for _, num_bytes in taken])
    return int(in_use.max()), int(in_use[-1])


def forward(model: PreTrainedModel, *, num_documents: int = 1, is_trimmed: bool) -> Callable[[], object]:
    input_ids = torch.zeros(num_documents, 2048, dtype=torch.int64)

    @torch.inference_mode()
    def compute() -> None:
        if not is_trimmed:
            model(input_ids=input_ids, use_cache=False, logits_to_keep=NUM_KEPT)
            return
        trim = Trim(num_kept=NUM_KEPT, piece_length=piece_length(model, num_documents))
        with trimmed_forward(model, trim, attention=PREFIX + "sdpa"):
            model(input_ids=input_ids, use_cache=False)

    return compute


def test_the_estimate_is_near_what_is_allocated(
    small: PreTrainedModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", 1)
    found, estimates = [], []
    for pieces, num_documents in ((256, 1), (512, 1), (1024, 1), (2048, 1), (256, 2), (0, 1), (0, 2)):
        monkeypatch.setattr("workers.memory.MIN_PIECE", pieces)
        is_trimmed = pieces > 0
        in_use, left = allocated(forward(small, num_documents=num_documents, is_trimmed=is_trimmed), tmp_path)
        needed = forward_bytes(small, 2048, num_kept=NUM_KEPT, is_trimmed=is_trimmed, num_documents=num_documents)
        # An estimate: what the layers free early is counted, what attention takes for itself is not
        assert 0.7 <= needed / in_use <= 2
        assert left == 0
        found.append(in_use)
        estimates.append(needed)
    for numbers in (found, estimates):
        # More in longer pieces, most in a plain forward, and more for two documents
        assert numbers[:4] == sorted(numbers[:4])
        assert numbers[0] < numbers[4]
        assert 2 * numbers[0] < numbers[5] < numbers[6]
        assert numbers[3] <= numbers[5]


def test_a_longer_document_needs_more_by_what_its_tokens_keep(small: PreTrainedModel) -> None:
    lengths = [1024, 2048, 4096]
    first, second, third = (
        forward_bytes(small, length, num_kept=NUM_KEPT, is_trimmed=True) - min(length, piece_length(small, 1)) * each
        for length in lengths
        for each in [activation_bytes(small)]
    )
    assert third - second == 2 * (second - first)
    assert forward_bytes(small, 256, num_kept=256, is_trimmed=True) > forward_bytes(
        small, 256, num_kept=1, is_trimmed=True
    )


@pytest.mark.parametrize("budget", [0, 1, 2**20, 2**28, 10**9, 2**40])
def test_pieces_are_powers_of_two_within_the_budget_but_for_the_shortest(
    small: PreTrainedModel, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PIECE_BYTES, "cpu", budget)
    for num_documents in (1, 3, 64):
        length = piece_length(small, num_documents)
        assert length >= 256
        assert length & (length - 1) == 0
        assert length == 256 or length * num_documents * activation_bytes(small) <= budget
        assert 2 * length * num_documents * activation_bytes(small) > budget


MEMORY_INFO = """MemTotal:       32000000 kB
MemFree:         1000000 kB
MemAvailable:   {} kB
Buffers:          200000 kB
"""


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A system's words about its memory: 8,000,000 kB are available, and there is no limit."""
    memory_info, cgroup = tmp_path / "meminfo", tmp_path / "cgroup"
    memory_info.write_text(MEMORY_INFO.format(8_000_000), encoding="ascii")
    cgroup.mkdir()
    return memory_info, cgroup


def limit(cgroup: Path, most: str, current: int, inactive: int = 0) -> None:
    (cgroup / "memory.max").write_text(f"{most}\n", encoding="ascii")
    (cgroup / "memory.current").write_text(f"{current}\n", encoding="ascii")
    stat = f"anon 5\nfile 9\nactive_file 7\ninactive_file {inactive}\nworkingset_refault_file 3\n"
    (cgroup / "memory.stat").write_text(stat, encoding="ascii")


def test_main_memory_is_what_is_available_within_the_containers_limit(files: tuple[Path, Path]) -> None:
    assert host_bytes(*files) == 8_192_000_000
    limit(files[1], "max", 10**9)
    assert host_bytes(*files) == 8_192_000_000
    limit(files[1], str(10**13), 10**9)
    assert host_bytes(*files) == 8_192_000_000
    limit(files[1], str(4 * 10**9), 10**9)
    assert host_bytes(*files) == 3 * 10**9


def test_pages_of_files_that_were_read_are_no_memory_in_use(files: tuple[Path, Path]) -> None:
    limit(files[1], str(4 * 10**9), 39 * 10**8, inactive=2 * 10**9)
    assert host_bytes(*files) == 21 * 10**8


def test_where_the_system_does_not_say_it_memory_is_not_known(files: tuple[Path, Path], tmp_path: Path) -> None:
    assert host_bytes(tmp_path / "nothing", files[1]) is None
    files[0].write_text("MemTotal: 32000000 kB\n", encoding="ascii")
    assert host_bytes(*files) is None


@pytest.fixture
def with_memory(files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Makes the system say how much memory it has, in kB."""
    monkeypatch.setattr("workers.memory.MEMORY_INFO", files[0])
    monkeypatch.setattr("workers.memory.CGROUP", files[1])

    def say(num_kilobytes: int) -> None:
        files[0].write_text(MEMORY_INFO.format(num_kilobytes), encoding="ascii")

    return say


def resized(document: NeedleDocument, num_tokens: int) -> NeedleDocument:
    """The document with more tokens before its answer of 3."""
    token_ids = np.resize(document.token_ids, num_tokens)
    return replace(document, token_ids=token_ids, answer_start=num_tokens - 3)


@pytest.mark.parametrize("is_trimmed", [True, False])
def test_a_document_that_cannot_fit_is_refused_with_a_length_that_fits(
    load: Load, documents: list[NeedleDocument], with_memory: Callable[[int], None], is_trimmed: bool
) -> None:
    loaded = replace(load("llama"), is_trimmed=is_trimmed)
    document = resized(documents[0], 2**20)
    needed = forward_bytes(loaded.model, 2**20, num_kept=4, is_trimmed=is_trimmed)
    with_memory(needed // 2 // 1024)
    with pytest.raises(ValueError) as raised:
        check_memory(loaded, document)
    message = re.fullmatch(
        r"a document of 1048576 tokens must fit the memory beside the weights, got (\S+) GB free on cpu where about "
        r"(\S+) GB are needed\. Up to about (\d+) tokens fit; lower --target-length, free memory, or spread the model "
        r"with --gpus-per-worker\.",
        str(raised.value),
    )
    assert message
    assert (message[1], message[2]) == (f"{needed / 2e9:.3g}", f"{needed / 1e9:.3g}")
    fitting = int(message[3])
    assert fitting % 1024 == 0
    check_memory(loaded, resized(document, fitting))
    with pytest.raises(ValueError, match=r"must fit the memory beside the weights"):
        check_memory(loaded, resized(document, fitting + 1024))
    with_memory(needed // 1024 + 1)
    check_memory(loaded, document)


def test_where_nothing_fits_no_length_is_said_to(
    load: Load, documents: list[NeedleDocument], with_memory: Callable[[int], None]
) -> None:
    with_memory(0)
    for num_tokens in (128, 1024, 5000):
        with pytest.raises(ValueError, match=r"Not even 1024 tokens fit; lower"):
            check_memory(load("llama"), resized(documents[0], num_tokens))


def test_nothing_is_refused_where_memory_is_not_known(
    load: Load, documents: list[NeedleDocument], files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("workers.memory.MEMORY_INFO", files[0] / "nothing")
    assert available_bytes(torch.device("cpu")) is None
    check_memory(load("llama"), resized(documents[0], 2**26))


def test_a_model_in_several_places_is_not_checked(
    load: Load, documents: list[NeedleDocument], with_memory: Callable[[int], None]
) -> None:
    with_memory(0)
    loaded = load("llama")
    loaded.model.get_submodule("lm_head").to("meta")
    check_memory(loaded, resized(documents[0], 2**20))


def test_scoring_refuses_documents_that_cannot_fit_before_any_forward(
    load: Load,
    documents: list[NeedleDocument],
    with_memory: Callable[[int], None],
    make_factors: MakeFactors,
    caplog: pytest.LogCaptureFixture,
) -> None:
    loaded = load("llama")
    calls: list[nn.Module] = []

    def count(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        calls.append(module)

    loaded.model.get_submodule("model.embed_tokens").register_forward_pre_hook(count)
    with_memory(100)
    with caplog.at_level(logging.INFO), pytest.raises(ValueError, match=r"^a document of 4096 tokens must") as raised:
        NeedleScoring(loaded, [*documents, resized(replace(documents[0], id="long"), 4096)])
    assert "\n" not in str(raised.value)
    assert calls == []
    with_memory(8_000_000)
    scoring = NeedleScoring(loaded, documents)
    measured = scoring.score(make_factors(loaded, "linear"), [documents[0].id])
    assert measured[0].failure is None
