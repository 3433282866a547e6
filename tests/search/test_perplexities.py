"""Perplexity in `ropewalk evaluate`: figures that transformers and the texts' own sums give, and what is refused."""

import json
import logging
from contextlib import redirect_stdout
from io import StringIO
from math import exp
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from results.evaluation import TEXT_LOSSES, TextLoss
from results.row_store import RowStore
from results.text_loss_tables import perplexities
from search.cli import main
from search.evaluation.config import EvaluationConfig
from search.evaluation.contenders import read_contenders
from search.evaluation.perplexities import Perplexities, held_out_texts
from search.evaluation.tables import new_console, show
from workers.evaluate import Contender
from workers.model import LoadedModel, load_model
from workers.perplexity import FORMS, pooled, text_perplexity

LINES, TABLE = "text_losses.jsonl", "text_losses.parquet"
REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
CORPUS = REFERENCE / "tom_sawyer.txt"
WINDOW = 256
# float32 sums in another order: 2^-24 over some hundred terms of losses of about 5
TOLERANCE = 1e-5


def configured(**changes: object) -> EvaluationConfig:
    settings: dict[str, object] = {
        "model": str(REFERENCE / "model"),
        "corpus": str(CORPUS),
        "methods": "none,yarn",
        "lengths": "128,512",
        "num_texts": 2,
        "text_length": 560,
    } | changes
    return EvaluationConfig(**settings)  # type: ignore[arg-type]


def arguments(run_dir: Path, **changes: object) -> list[str]:
    settings: dict[str, object] = {
        "model": REFERENCE / "model",
        "corpus": CORPUS,
        "methods": "none,yarn",
        "tasks": "perplexity,perplexity_longlora",
        "lengths": "128,512",
        "num-texts": 2,
        "text-length": 560,
        "dtype": "float32",
        "run-dir": run_dir,
    } | changes
    return ["evaluate", *(f"--{name}={value}" for name, value in settings.items() if value is not None)]


def measured(loaded: LoadedModel, config: EvaluationConfig, contenders: list[Contender]) -> list[TextLoss]:
    measure = Perplexities.build(config, loaded, FORMS)
    steps = [step for contender in contenders for step in measure.steps(contender, set())]
    assert sum(step.num_units for step in steps) == len(contenders) * measure.num_units
    return [row for step in steps for row in step.rows]


def told(measure: Perplexities, rows: pd.DataFrame, contenders: list[Contender]) -> str:
    with redirect_stdout(StringIO()) as stream:
        for table in measure.tables(rows, contenders):
            show(new_console(200), table)
    return stream.getvalue()


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("perplexities") / "run"
    assert main(arguments(run_dir)) == 0
    return run_dir


def test_a_text_of_one_window_has_the_perplexity_that_transformers_computes(loaded: LoadedModel) -> None:
    config = configured(lengths="512", text_length=512)
    contenders = read_contenders(config, loaded.geometry)
    rows = measured(loaded, config, contenders)
    texts = held_out_texts(config, loaded, 512, hint="")
    for name, factors in contenders:
        losses = []
        with loaded.patch, torch.inference_mode():
            loaded.patch.install(factors)
            for text in texts:
                input_ids = torch.from_numpy(text.token_ids.astype(np.int64))[None]
                losses.append(loaded.model(input_ids=input_ids, labels=input_ids).loss.item())
        found = perplexities(pd.DataFrame([vars(row) for row in rows if row.contender == name])).set_index("form")
        # Both texts have 511 scored tokens
        assert found.loc[["sliding", "longlora"], "perplexity"].tolist() == pytest.approx(
            [exp(np.mean(losses))] * 2, rel=10 * TOLERANCE
        )


def test_figures_over_texts_are_those_of_their_pooled_windows(loaded: LoadedModel) -> None:
    config = configured()
    yarn = read_contenders(config, loaded.geometry)[1]
    found = perplexities(pd.DataFrame([vars(row) for row in measured(loaded, config, [yarn])]))
    figures = found.set_index(["form", "length"])["perplexity"]
    texts = held_out_texts(config, loaded, 560, hint="")
    for form in FORMS:
        for length, factors in ((128, None), (512, yarn.factors)):
            parts = [
                text_perplexity(loaded, text.token_ids, factors, window=length, stride=length // 4, form=form)
                for text in texts
            ]
            assert figures[form, length] == pytest.approx(pooled(parts).perplexity)


def test_rows_hold_sums_by_context_that_end_with_the_window(loaded: LoadedModel) -> None:
    config = configured(lengths="300")
    (row, *_) = measured(loaded, config, read_contenders(config, loaded.geometry)[:1])
    assert row.first_contexts == [1, 2, 4, 8, 16, 32, 64, 128, 256]
    assert row.last_contexts == [1, 3, 7, 15, 31, 63, 127, 255, 299]
    assert sum(row.bucket_counts) == row.num_tokens == 559
    assert sum(number for number in row.bucket_sums if number) == pytest.approx(row.sum_nll)
    assert (row.num_text_tokens, row.stride) == (560, 75)


def test_inside_the_original_window_every_contender_is_the_model_as_it_was_loaded(finished: Path) -> None:
    frame = pd.read_parquet(finished / TABLE)
    assert len(frame) == 2 * 2 * 2 * 2
    # The same texts at every length, in every form, for every contender
    assert frame.groupby("text")["num_text_tokens"].agg(["nunique", "size"]).to_numpy().tolist() == [[1, 8], [1, 8]]
    losses = frame.pivot(index=["form", "length", "text"], columns="contender", values="sum_nll")
    inside = losses.xs(128, level="length")
    assert (inside["none"] == inside["yarn"]).all()
    beyond = losses.xs(2 * WINDOW, level="length")
    assert (beyond["none"] > beyond["yarn"]).all()


def test_a_killed_evaluation_goes_on_where_it_was_and_reads_nothing_twice(finished: Path, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    assert main(arguments(run_dir)) == 0
    lines = (run_dir / LINES).read_bytes().splitlines(keepends=True)
    (run_dir / TABLE).unlink()
    before = [json.loads(line) for line in lines[:5]]
    (run_dir / LINES).write_bytes(b"".join(lines[:5]) + lines[5][:20])
    assert main(arguments(run_dir)) == 0
    after = [json.loads(line) for line in (run_dir / LINES).read_bytes().splitlines()]
    assert after[:5] == before  # their times too
    resumed, whole = (pd.read_parquet(path / TABLE).drop(columns="seconds") for path in (run_dir, finished))
    pd.testing.assert_frame_equal(resumed, whole)


def test_the_tables_show_each_form_the_loss_by_context_and_the_law(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {"tasks": "perplexity,perplexity_temp-lora", "methods": "yarn", "lengths": "512", "text-length": "600"}
    assert main(arguments(tmp_path / "run", **changes)) == 0
    shown = capsys.readouterr().out
    for title in ("Perplexity, every token once", "Temp-LoRA's form", "Loss by context in windows of 512 tokens"):
        assert title in " ".join(shown.split())
    assert "LongLoRA" not in shown
    # Two texts give 100 tokens or more from 64 tokens of context on: three ranges, and a law needs four
    assert "yarn is not fitted: 4 ranges of context with 100 scored tokens are needed, got 3" in " ".join(shown.split())


def test_without_contexts_of_enough_tokens_there_is_no_empty_table_but_the_reason(loaded: LoadedModel) -> None:
    config = configured(lengths="64", text_length=64, num_texts=1)
    contenders = read_contenders(config, loaded.geometry)
    measure = Perplexities.build(config, loaded, ["sliding"])
    shown = told(measure, pd.DataFrame([vars(row) for row in measured(loaded, config, contenders)]), contenders)
    assert "Loss by context" not in shown
    assert "residual" not in shown
    assert "none is not fitted: 4 ranges of context with 100 scored tokens are needed, got 0" in shown


def test_lengths_beyond_the_factors_are_marked(loaded: LoadedModel) -> None:
    config = configured(lengths="512,560", num_texts=1)
    (yarn,) = read_contenders(configured(lengths="512", methods="yarn"), loaded.geometry)
    rows = pd.DataFrame([vars(row) for row in measured(loaded, config, [yarn])])
    lines = told(Perplexities.build(config, loaded, FORMS), rows, [yarn]).splitlines()
    figures = [line for line in lines if line.strip().startswith("yarn")][:3]
    assert [line.count("*") for line in figures] == [1, 1, 1]
    assert all(line.rstrip().endswith("*") for line in figures)


def test_a_loss_that_is_no_number_is_stored_as_none_and_shown_as_such(tmp_path: Path) -> None:
    broken = load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")
    embedding = broken.model.get_input_embeddings().weight
    assert isinstance(embedding, torch.Tensor)
    embedding.data[:] = float("nan")
    config = configured(lengths="64", text_length=64, num_texts=1)
    contenders = read_contenders(config, broken.geometry)
    rows = measured(broken, config, contenders)
    assert {row.weighted_loss for row in rows} == {row.sum_nll for row in rows} == {None}
    store = RowStore(tmp_path, TEXT_LOSSES, TextLoss)
    store.add(rows)
    shown = told(Perplexities.build(config, broken, FORMS), store.finish(), contenders)
    assert shown.count("not finite") >= 3 * 2
    assert "nan" not in shown.lower()


def test_texts_have_exact_tokens_that_begin_as_the_tokenizer_begins(loaded: LoadedModel) -> None:
    texts = held_out_texts(configured(num_texts=3), loaded, 1000, hint="")
    assert len({text.id for text in texts}) == 3
    for text in texts:
        assert text.token_ids.shape == (1000,)
        assert text.token_ids[0] == loaded.tokenizer.bos_token_id
        assert loaded.tokenizer.bos_token_id not in text.token_ids[1:]
    assert not np.array_equal(texts[0].token_ids, texts[1].token_ids)
    again, other = (held_out_texts(configured(seed=seed), loaded, 1000, hint="")[0] for seed in (0, 1))
    assert Perplexities.build(configured(), loaded, FORMS).fingerprint() == (
        Perplexities.build(configured(), loaded, FORMS).fingerprint()
    )
    assert not np.array_equal(again.token_ids, other.token_ids)


def test_texts_are_of_the_part_of_the_corpus_that_no_search_reads(loaded: LoadedModel, tmp_path: Path) -> None:
    corpus = tmp_path / "book.txt"
    corpus.write_text("a sentence of the search. " * 600 + "What is left for the end! " * 400)
    (text,) = held_out_texts(configured(corpus=str(corpus), num_texts=1), loaded, 300, hint="")
    shown = loaded.tokenizer.decode(text.token_ids.tolist(), skip_special_tokens=True)
    assert "left for the end" in shown
    assert "search" not in shown


def test_a_corpus_in_which_texts_overlap_is_warned_about(
    loaded: LoadedModel, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    corpus = tmp_path / "book.txt"
    corpus.write_text(CORPUS.read_text(encoding="utf-8")[:20_000], encoding="utf-8")
    with caplog.at_level(logging.WARNING):
        held_out_texts(configured(corpus=str(corpus), num_texts=1), loaded, 1000, hint="")
        assert not caplog.records
        held_out_texts(configured(corpus=str(corpus), num_texts=8), loaded, 1000, hint="")
    assert "tokens, and 8 texts of 1000 tokens from it overlap" in caplog.text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"corpus": None}, r"^perplexity must have a text to read, got no --corpus\. Give a file or a folder\.$"),
        ({"lengths": "4,512"}, r"^--lengths must be at least 8 tokens for perplexity, got 4\. Drop it\.$"),
        ({"text_length": 500}, r"^--text-length must be at least 512, the longest of --lengths, so that .* got 500\. "),
        ({"stride": 128}, r"^--stride must be at least 2 and below 128, the shortest of --lengths, got 128\. "),
        ({"stride": 1}, r"^--stride must be at least 2 and below 128, the shortest of --lengths, got 1\. "),
        (
            {"text_length": 1_000_000},
            r"^the held-out part of \S+ must have 1000000 tokens for a text, got \d+\. Give a",
        ),
    ],
)
def test_what_cannot_be_measured_is_refused(loaded: LoadedModel, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Perplexities.build(configured(**changes), loaded, FORMS)


def test_the_command_refuses_perplexity_without_a_text_before_anything_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(tmp_path / "run", corpus=None)) == 2
    assert "got no --corpus" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
