"""The shipped model is small, retrieves inside its window and fails beyond it; its program makes such a model."""

from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from needles.document import build_documents
from results.measurement import perplexity
from rope.identity import none_factors
from workers.model import LoadedModel, load_model
from workers.reference.curriculum import schedule
from workers.reference.train import MODEL_FOLDER, WINDOW, train
from workers.scoring import NeedleScoring

HAYSTACK = MODEL_FOLDER.parent / "tom_sawyer.txt"
"""A book that was not in the training."""


@pytest.fixture(scope="module")
def reference() -> LoadedModel:
    return load_model(str(MODEL_FOLDER), dtype="float32", device="cpu")


def needle_perplexity(loaded: LoadedModel, length: int, *, num_documents: int) -> float:
    documents = build_documents(
        loaded.tokenizer,
        HAYSTACK,
        split="heldout",
        num_documents=num_documents,
        length=length,
        rng=np.random.default_rng(2024),
    )
    factors = none_factors(
        loaded.geometry.rotary_dim, loaded.geometry.base, original_length=WINDOW, target_length=length
    )
    scoring = NeedleScoring(loaded, documents)
    return perplexity(scoring.score(factors, [document.id for document in documents]))


def test_the_model_is_as_small_as_the_issue_allows() -> None:
    files = list(MODEL_FOLDER.iterdir())
    assert sum(file.stat().st_size for file in files) <= 4_000_000
    with safe_open(MODEL_FOLDER / "model.safetensors", framework="numpy") as weights:
        shapes = [weights.get_slice(name) for name in weights.keys()]  # noqa: SIM118 - no mapping
        assert {shape.get_dtype() for shape in shapes} == {"BF16"}
        assert sum(int(np.prod(shape.get_shape())) for shape in shapes) <= 2_000_000


def test_the_model_has_a_window_of_256_and_16_frequency_pairs(reference: LoadedModel) -> None:
    assert reference.geometry.original_length == WINDOW == 256
    assert reference.geometry.rotary_dim // 2 == 16


def test_the_model_retrieves_inside_its_window_and_fails_honestly_at_four_times_it(reference: LoadedModel) -> None:
    inside = needle_perplexity(reference, WINDOW, num_documents=50)
    assert inside <= 1.2
    assert needle_perplexity(reference, 4 * WINDOW, num_documents=16) >= 10 * inside


def test_the_curriculum_spends_every_step_and_ends_in_the_window() -> None:
    steps = list(schedule(WINDOW, 200))
    assert len(steps) == 200
    assert [length for _, length in steps] == sorted(length for _, length in steps)
    assert steps[-1][1] == WINDOW


def test_the_program_writes_a_model_that_loads_and_reads_needle_documents(tmp_path: Path) -> None:
    corpus = tmp_path / "book.txt"
    corpus.write_text(HAYSTACK.read_text()[:60_000])
    train(str(corpus), tmp_path / "model", num_steps=10, seed=0)
    loaded = load_model(str(tmp_path / "model"), dtype="float32", device="cpu")
    assert needle_perplexity(loaded, WINDOW, num_documents=2) > 10  # ten steps teach nothing
