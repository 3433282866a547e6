"""Published lists that come with the project, against the numbers as they were published."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from results.imports.published import import_published, published_names

ORACLES = Path(__file__).parents[2] / "oracles"


def oracle(name: str) -> Any:
    return json.loads((ORACLES / f"{name}.json").read_text(encoding="utf-8"))


def test_longrope2s_list_for_llama3_is_the_published_one() -> None:
    published = oracle("longrope2_llama3_8b")
    factors = import_published("longrope2-llama3-8b-128k").factors
    assert list(factors.values) == published["long_factor"]
    assert factors.short_values is None
    for name in ("rotary_dim", "base", "original_length", "target_length", "critical_dim"):
        assert getattr(factors, name) == published[name], name
    assert factors.attention_temperature == published["attention_factor"]
    # transformers, which the list was published for, applies it to both windows
    assert factors.short_attention_temperature == published["attention_factor"]


def test_phi3s_lists_are_the_published_ones() -> None:
    published = oracle("longrope_phi3_mini")
    factors = import_published("longrope-phi3-mini-128k-2024-07").factors
    assert list(factors.values) == published["long_factor"]
    assert factors.short_values is not None
    assert list(factors.short_values) == published["short_factor"]
    assert (factors.rotary_dim, factors.base, factors.original_length) == (96, 1e4, 4096)
    assert factors.critical_dim is None


def test_mistrals_list_is_the_published_one() -> None:
    factors = import_published("longrope-mistral-7b-2048k-ft256k").factors
    assert list(factors.values) == oracle("longrope_mistral_2048k")
    # 512 times 4096 tokens: sqrt(1 + 9/12)
    assert factors.attention_temperature == pytest.approx(1.75**0.5, rel=1e-15)
    assert factors.short_attention_temperature == 1.0


@pytest.mark.parametrize("name", published_names())
def test_every_list_says_its_model_source_and_licence(name: str) -> None:
    imported = import_published(name)
    assert imported.factors.method == "published"
    for fact in ("model", "source", "licence", "temperature"):
        assert imported.factors.provenance[fact]
    assert re.search(r"arXiv:\d{4}\.\d{5}", imported.factors.provenance["source"])


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"^a published list must be one of \d+ known ones, got 'longrope2-llama3-8b'\. "
    ):
        import_published("longrope2-llama3-8b")
    with pytest.raises(ValueError, match=r"Did you mean longrope2-llama3-8b-128k\b"):
        import_published("longrope2-llama3-8b-64k")
    for name in ("qqq", "../factors", ""):
        with pytest.raises(ValueError, match="Did you mean longrope-llama2-7b-128k, "):
            import_published(name)
