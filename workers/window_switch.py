"""A loaded model as lm-evaluation-harness sees it, with the window switch. Needs the extra `eval`."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import deepcopy
from dataclasses import dataclass
from math import isnan
from typing import Any, TypeAlias

import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text
from torch import Tensor

from rope.factors import RescaleFactors
from workers.decoding import Decoding
from workers.generate import generate
from workers.harness import RefusedTaskError
from workers.model import LoadedModel
from workers.rope_patch import RopePatch

FIRST_PIECE = 32
"""Tokens after which a text is first looked through for the strings that end it; then after twice as many, ..."""

Request: TypeAlias = tuple[tuple[str, str] | None, list[int], list[int]]
"""What the harness asks for, context and continuation as token ids."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How a task wants its texts to be written.

    Raises:
        ValueError: Texts are to be chosen in a way that Ropewalk does not know, or have no room.
    """

    num_tokens: int
    """Most tokens of a text."""
    until: tuple[str, ...]
    """Strings that end a text; they are no part of it."""
    temperature: float
    """Of the draws; 0 for the likeliest tokens."""
    top_p: float
    """Share of the likeliest tokens that are drawn from."""

    @classmethod
    def read(cls, settings: Mapping[str, Any], *, max_length: int, default_num_tokens: int) -> "Writing":
        """Return what a task's generation_kwargs say; unknown ones are refused.

        Args:
            settings: The generation_kwargs.
            max_length: Most tokens of prompt and text together.
            default_num_tokens: Where they do not say how many tokens are written.
        """
        known = normalize_gen_kwargs(dict(settings), default_num_tokens)
        do_sample = known.pop("do_sample", None)
        temperature, top_p = float(known.pop("temperature", 0.0)), float(known.pop("top_p", 1.0))
        until, num_tokens = known.pop("until"), known.pop("max_gen_toks")
        if known.pop("num_beams", 1) != 1 or known:
            raise RefusedTaskError(
                "generation_kwargs must be among until, max_gen_toks, do_sample, temperature and top_p, got "
                f"{', '.join(known) or 'num_beams'}. Drop it from the task file."
            )
        if not 0 < num_tokens < max_length:
            raise RefusedTaskError(
                f"max_gen_toks must be at least 1 and leave room for a prompt in {max_length} tokens, got "
                f"{num_tokens}. Raise --lengths."
            )
        if do_sample is False:
            temperature = 0.0
        return cls(num_tokens=num_tokens, until=tuple(until), temperature=temperature, top_p=top_p)


class SwitchingLM(HFLM):  # type: ignore[misc]
    """Reads with a contender's factors what is longer than the original window, and all else with its short factors.

    Without short factors what is not longer is read by the model as it was loaded.

    Tokens are counted as they are read: the last token of a continuation is not. Rows on both sides of the border never
    share a forward, so a row's figures do not depend on what it is padded with, up to rounding. Texts are written by
    `workers.generate.generate`. All else is the harness's own HFLM with its own defaults: it holds the logits of whole
    batches, and what is longer than `max_length` it cuts on the left.
    """

    def __init__(self, loaded: LoadedModel, *, max_length: int, batch_size: int, seed: int) -> None:
        """Wrap a model.

        Args:
            loaded: The model.
            max_length: Most tokens of a row, and of the windows of texts whose likelihood is rolling.
            batch_size: Rows of a forward.
            seed: Of texts that are drawn.
        """
        # The harness gives a tokenizer without a padding token one
        super().__init__(
            pretrained=loaded.model,
            backend="causal",
            tokenizer=deepcopy(loaded.tokenizer),
            max_length=max_length,
            batch_size=batch_size,
        )
        self.factors: RescaleFactors | None = None
        """Beyond the original window, and their short ones inside it; None for the model as it was loaded."""
        self.num_cut = 0
        """Rows that were cut on the left so far."""
        self.num_not_finite = 0
        """Rows so far whose logits were no numbers."""
        self._patch: RopePatch = loaded.patch
        self._border = loaded.geometry.original_length
        self._seed = seed

    def writing(self, settings: Mapping[str, Any]) -> Writing:
        """Return how a task wants its texts to be written.

        Args:
            settings: Its generation_kwargs.

        Raises:
            ValueError: As `Writing`.
        """
        return Writing.read(settings, max_length=self.max_length, default_num_tokens=self.max_gen_toks)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Return each continuation's log-likelihood, nats, and whether it is the likeliest one token by token.

        Args:
            requests: Contexts and continuations.
            disable_tqdm: Without effect: there is no bar.
        """
        found: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Return each text's log-likelihood, nats, read in windows of `max_length` tokens that do not overlap.

        Args:
            requests: Texts.
            disable_tqdm: Without effect: there is no bar.
        """
        found: list[float] = super().loglikelihood_rolling(requests, disable_tqdm=True)
        return found

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Return a text for each prompt, without the string that ended it.

        Args:
            requests: Prompts, and the generation_kwargs of each.
            disable_tqdm: Without effect: there is no bar.
        """
        alike = defaultdict(list)
        for number, request in enumerate(requests):
            alike[repr(request.args[1])].append(number)
        texts: dict[int, str] = {}
        for numbers in alike.values():
            writing = self.writing(requests[numbers[0]].args[1])
            prompts = [self._prompt(requests[number].args[0], writing) for number in numbers]
            written = self._write(prompts, writing, seeds=[self._seed + number for number in numbers])
            texts.update(zip(numbers, written, strict=True))
        return [texts[number] for number in range(len(requests))]

    def _loglikelihood_tokens(
        self, requests: Sequence[Request], disable_tqdm: bool = False, override_bs: int | None = None
    ) -> list[tuple[float, bool]]:
        lengths = [len(context) + len(continuation) - 1 for _, context, continuation in requests]
        for _, _, continuation in requests:
            if not 0 < len(continuation) <= self.max_length:
                raise RefusedTaskError(
                    f"a continuation must have 1 to {self.max_length} tokens, got {len(continuation)}. Correct the "
                    "task's data, or raise --lengths."
                )
        found: dict[int, tuple[float, bool]] = {}
        for is_beyond in (False, True):
            numbers = [
                number
                for number, length in enumerate(lengths)
                if (min(length, self.max_length) > self._border) == is_beyond
            ]
            if not numbers:
                continue
            with self._rotation(is_beyond=is_beyond):
                part = super()._loglikelihood_tokens([requests[number] for number in numbers], disable_tqdm=True)
            found.update(zip(numbers, part, strict=True))
        self.num_cut += sum(length > self.max_length for length in lengths)
        self.num_not_finite += sum(isnan(value) for value, _ in found.values())
        return [found[number] for number in range(len(requests))]

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        assert attn_mask is None
        assert labels is None
        with torch.inference_mode():
            logits: Tensor = self.model(input_ids=inps, use_cache=False).logits
        return logits

    def _rotation(self, *, is_beyond: bool) -> AbstractContextManager[object]:
        factors = self.factors if is_beyond or self.factors is None else self.factors.short
        if factors is None:
            return nullcontext()
        self._patch.install(factors)
        return self._patch

    def _prompt(self, text: str, writing: Writing) -> list[int]:
        ids: list[int] = self.tok_encode(text) or [self.prefix_token_id]
        room = self.max_length - writing.num_tokens
        self.num_cut += len(ids) > room
        return ids[-room:]

    def _write(self, prompts: Sequence[list[int]], writing: Writing, *, seeds: Sequence[int]) -> list[str]:
        assert self.factors is not None
        stop_token_ids = self._stop_token_ids()
        written: list[list[int]] = [[] for _ in prompts]
        going = list(range(len(prompts)))
        # What is drawn depends on where a prompt ends, so a drawn text is written in one piece
        piece = writing.num_tokens if writing.temperature else FIRST_PIECE
        while going:
            piece = min(piece, writing.num_tokens - len(written[going[0]]))
            decoding = Decoding(
                num_new_tokens=piece,
                temperature=writing.temperature,
                top_p=writing.top_p,
                seed=[seeds[number] for number in going],
                stop_token_ids=stop_token_ids,
                batch_size=self.batch_size,
            )
            read = [prompts[number] + written[number] for number in going]
            parts = generate(
                self.model,
                read,
                decoding,
                long=self.factors,
                warns=False,
                short=self.factors.short,
                original_length=self._border,
            )
            for number, part in zip(going, parts, strict=True):
                written[number] += part.token_ids
                self.num_not_finite += part.ended == "not finite"
            going = [
                number
                for number, part in zip(going, parts, strict=True)
                if part.ended == "length"
                and len(written[number]) < writing.num_tokens
                and not any(word and word in self.tok_decode(written[number]) for word in writing.until)
            ]
            piece *= 2
        stop = handle_stop_sequences(list(writing.until), eos=None)
        return [postprocess_generated_text(self.tok_decode(ids), stop, think_end_token=None) for ids in written]

    def _stop_token_ids(self) -> set[int]:
        own = getattr(self.model.generation_config, "eos_token_id", None)
        ids = own if isinstance(own, list) else [own]
        return {number for number in (*ids, self.tokenizer.eos_token_id) if number is not None}
