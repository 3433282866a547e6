"""What a training step costs: tokens per second and peak memory against pack length, beside plainer ways of it.

A shape's model of random weights, in full or with LoRA adapters, reads packs of documents of one length (short) or
of one document (long), forward, backward and AdamW. The ways take turns on the same model, so that a machine that
slows down slows all of them; ratios are medians of turns side by side. The losses must agree: a run in which they do
not is void and exits 1. What does not fit is a row that says so. Memory on a CPU is the process's, above what it had
before the step.

    python -m tests.benchmarks.tuning                                                     # CPU: SmolLM2-135M, 2 layers
    python -m tests.benchmarks.tuning --shape LLaMA3-8B --lora 16 --lengths 32768 65536 131072

Shapes: B packs, T tokens of each, N hidden size, V vocabulary.
"""

import argparse
import math
import statistics
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from tests.benchmarks.scoring_models import SHAPES, Job, free_memory, random_model, shape_config
from workers.speed import device_name, peak_bytes, synchronize
from workers.threads import set_threads
from workers.tuning.attention import PACKED, PackedInputs, choose_packed_attention, packed_inputs
from workers.tuning.lora import with_adapters
from workers.tuning.loss import CHUNK_TOKENS, chunked_cross_entropy, logit_terms
from workers.tuning.packs import pack
from workers.tuning.training_config import LoraConfig

CPU_LENGTHS, CUDA_LENGTHS = [256, 512, 1024], [32768, 65536, 131072]
MOST_MASKED = 16384
"""Tokens up to which a mask over pairs of tokens is tried on CUDA."""
TOLERANCE = 0.01
"""How far losses of the ways may lie apart, as a share: bfloat16 rounds differently in different kernels."""
CONSOLE = Console(width=140, highlight=False, markup=False, emoji=False)


class Way(NamedTuple):
    """How a step is computed."""

    is_packed: bool
    """Whether attention is packed, or transformers' SDPA under the mask that restarting positions call for."""
    is_chunked: bool
    """Whether the loss comes in chunks, or from all logits."""


WAYS = {
    "ropewalk": Way(is_packed=True, is_chunked=True),
    "masked attention": Way(is_packed=False, is_chunked=True),
    "plain loss": Way(is_packed=True, is_chunked=False),
}


class Turn(NamedTuple):
    """One step."""

    seconds: float
    loss: float
    peak_bytes: int


def main() -> None:
    """Measure, print a table for each length and kind of pack, and say whether all ways agreed."""
    options = parsed()
    set_threads(None)
    device = torch.device(options.device)
    model, trained = training_model(options, device)
    kernel = choose_packed_attention(model)
    weights = f"LoRA of rank {options.lora}" if options.lora else "all weights"
    CONSOLE.print(
        f"{options.shape}, {model.config.num_hidden_layers} layers, {options.dtype}, {weights}, on "
        f"{device_name(device)}; packed attention by {kernel}, loss in chunks of {options.chunk} tokens"
    )
    first_way = options.ways[0]
    headings = ("tokens", "packs", "way", "tokens/s", f"to {first_way}", "peak GB", f"to {first_way}", "loss")
    wrong = False
    for length in options.lengths:
        for kind, document in (("short", min(options.document, length)), ("long", length)):
            inputs = random_packs(model, length, document, options.batch, device)
            turns = take_turns(model, trained, kernel, inputs, options)
            table = Table(*headings)
            wrong |= report(table, turns, kind, length * options.batch)
            CONSOLE.print(table)
    if wrong:
        sys.exit("the ways must agree in their losses, got otherwise. The run is void.")


def parsed() -> argparse.Namespace:
    """Return the options, with the defaults of the device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--shape", choices=list(SHAPES), help="a model of random weights")
    parser.add_argument("--layers", type=int, help="cut the shape to so many layers")
    parser.add_argument("--lengths", type=int, nargs="+", help="tokens per pack")
    parser.add_argument("--document", type=int, help="tokens per document of a short pack")
    parser.add_argument("--batch", type=int, default=1, help="packs per step")
    parser.add_argument("--lora", type=int, help="rank of adapters; 0 for all weights")
    parser.add_argument("--chunk", type=int, help="tokens per chunk of the loss")
    parser.add_argument("--dtype", choices=["bfloat16", "float32"])
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--repeats", type=int, default=3, help="turns of each way, after one that is not counted")
    options = parser.parse_args()
    if options.device == "auto":
        options.device = "cuda" if torch.cuda.is_available() else "cpu"
    is_cpu = options.device == "cpu"
    options.shape = options.shape or ("SmolLM2-135M" if is_cpu else "LLaMA3-8B")
    options.chunk = options.chunk or (128 if is_cpu else CHUNK_TOKENS)
    options.layers = options.layers or (2 if is_cpu else None)
    options.lengths = options.lengths or (CPU_LENGTHS if is_cpu else CUDA_LENGTHS)
    options.document = options.document or (64 if is_cpu else 8192)
    options.lora = (0 if is_cpu else 16) if options.lora is None else options.lora
    options.dtype = options.dtype or ("float32" if is_cpu else "bfloat16")
    return options


def training_model(options: argparse.Namespace, device: torch.device) -> tuple[PreTrainedModel, list[nn.Parameter]]:
    """Return the model and what of it is trained; activations are computed again in the backward pass on CUDA."""
    job = Job("tuning", options.shape, None, options.layers, options.device, options.dtype)
    config = shape_config(job)
    dtype = getattr(torch, options.dtype)
    model = random_model(config, dtype=dtype, device=options.device, attention="sdpa")
    if options.lora:
        with_adapters(model, LoraConfig(r=options.lora), seed=0)
    else:
        model.requires_grad_(True)
    if device.type == "cuda":
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[no-untyped-call]
    model.train()
    return model, [weight for weight in model.parameters() if weight.requires_grad]


def random_packs(
    model: PreTrainedModel, length: int, document: int, num_packs: int, device: torch.device
) -> PackedInputs:
    """Return packs of random tokens in documents of one length, the last one cut off."""
    rng = np.random.default_rng(length)
    bounds = [*range(0, length, document), length]
    lengths = np.diff(bounds)
    packs = [
        pack([rng.integers(0, model.config.vocab_size, size) for size in lengths], window="short", attend_across=False)
        for _ in range(num_packs)
    ]
    return packed_inputs(packs, device)


def take_turns(
    model: PreTrainedModel,
    trained: list[nn.Parameter],
    kernel: str,
    inputs: PackedInputs,
    options: argparse.Namespace,
) -> dict[str, list[Turn | None]]:
    """Return each way's turns, side by side; None from where it ran out of memory."""
    turns: dict[str, list[Turn | None]] = defaultdict(list)
    length = inputs["input_ids"].shape[1]
    for number in range(options.repeats + 1):
        for name in options.ways:
            way = WAYS[name]
            is_too_long = not way.is_packed and options.device == "cuda" and length > MOST_MASKED
            if is_too_long or None in turns[name]:
                turns[name].append(None)
                continue
            model.set_attn_implementation(PACKED + kernel if way.is_packed else "sdpa")
            try:
                turn = step(model, trained, inputs, way, options.chunk)
            except torch.OutOfMemoryError:
                turn = None
            free_memory()
            if number or turn is None:
                turns[name].append(turn)
    return turns


def step(
    model: PreTrainedModel, trained: list[nn.Parameter], inputs: PackedInputs, way: Way, chunk_tokens: int
) -> Turn:
    """Return what one optimizer step took; the rate is 0, so that every way meets the same weights."""
    device = inputs["input_ids"].device
    optimizer = torch.optim.AdamW(trained, lr=0.0, weight_decay=0.0)
    synchronize(device)
    start = perf_counter()
    with peak(device) as peaks:
        loss = summed_loss(model, inputs, way, chunk_tokens)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        synchronize(device)
    seconds = perf_counter() - start
    optimizer.zero_grad()
    return Turn(seconds, loss.item() / int((inputs["labels"] != -100).sum()), peaks[0])


def summed_loss(model: PreTrainedModel, inputs: PackedInputs, way: Way, chunk_tokens: int) -> Tensor:
    """Return the summed loss of packs in one way."""
    given: dict[str, object] = {name: value for name, value in inputs.items() if name != "labels"}
    if not way.is_packed:
        given = {name: given[name] for name in ("input_ids", "position_ids", "use_cache")}
    labels_BT = inputs["labels"]
    if not way.is_chunked:
        logits_BTV = model(**given).logits
        targets = functional.pad(labels_BT[:, 1:], (0, 1), value=-100).flatten()
        return functional.cross_entropy(logits_BTV.flatten(0, 1).float(), targets, reduction="sum")
    decoder: nn.Module = model.get_decoder()  # type: ignore[no-untyped-call]
    head: nn.Module = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    hidden_BTN = decoder(**given).last_hidden_state
    terms = logit_terms(model.config)._asdict()
    return chunked_cross_entropy(hidden_BTN, head, labels_BT, chunk_tokens=chunk_tokens, **terms)


@contextmanager
def peak(device: torch.device) -> Iterator[list[int]]:
    """Yield a list that has the peak memory of what is done inside, bytes, when it is left."""
    found: list[int] = []
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        found.append(torch.cuda.max_memory_allocated(device))
        return
    with suppress(OSError):  # where it cannot be, the peak is the process's, which larger packs still raise
        Path("/proc/self/clear_refs").write_text("5")
    before = psutil.Process().memory_info().rss
    yield found
    found.append(peak_bytes(device) - before)


def report(table: Table, turns: dict[str, list[Turn | None]], kind: str, num_tokens: int) -> bool:
    """Add the rows of packs of one kind and length; return whether losses disagree."""
    first = [turn for turn in next(iter(turns.values())) if turn is not None]
    losses = []
    for name, ways_turns in turns.items():
        taken = [turn for turn in ways_turns if turn is not None]
        if len(taken) < len(ways_turns):
            table.add_row(f"{num_tokens:,}", kind, name, "does not fit", "", "", "", "")
            continue
        losses += [turn.loss for turn in taken]
        peak_of = max(turn.peak_bytes for turn in taken)
        pairs = [*zip(taken, first, strict=False)]
        speed = statistics.median(one.seconds / turn.seconds for turn, one in pairs) if pairs else math.nan
        memory = peak_of / max(turn.peak_bytes for turn in first) if first else math.nan
        table.add_row(
            f"{num_tokens:,}",
            kind,
            name,
            f"{num_tokens / statistics.median(turn.seconds for turn in taken):,.0f}",
            f"{speed:.2f}",
            f"{peak_of / 1e9:.2f}",
            f"{memory:.2f}",
            f"{taken[0].loss:.4f}",
        )
    return bool(losses) and max(losses) - min(losses) > TOLERANCE * abs(max(losses))


if __name__ == "__main__":
    main()
