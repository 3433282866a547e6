"""What the harness hides, names and refuses, and what its model reads with a contender's short factors."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_eval.api.metrics import bootstrap_stderr, mean
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from tests.workers.test_harness import (
    REFERENCE,
    SCALE,
    TEXT,
    TOLERANCE,
    WINDOW,
    contender,
    greedy,
    ids,
    instances,
    loglikelihood,
    switching,
)
from workers.harness import Harness, _failing, _quiet
from workers.model import LoadedModel, load_model


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")


def read_plainly(scaling: str | None = None) -> PreTrainedModel:
    """Return the model with transformers' own scaling."""
    config = AutoConfig.from_pretrained(REFERENCE / "model")
    if scaling:
        config.rope_parameters = {
            "rope_type": scaling,
            "rope_theta": 500.0,
            "factor": float(SCALE),
            "original_max_position_embeddings": WINDOW,
        }
    return AutoModelForCausalLM.from_pretrained(REFERENCE / "model", config=config, dtype=torch.float32)


def test_inside_the_window_rows_and_texts_are_read_with_the_short_factors_of_a_contender(
    loaded: LoadedModel,
) -> None:
    plain, yarn = read_plainly(), read_plainly("yarn")
    model = switching(loaded, "yarn")
    own = contender("yarn").factors
    model.factors = replace(
        contender("none").factors, short_values=own.values, short_attention_temperature=own.attention_temperature
    )
    text = ids(loaded, TEXT[:9000])
    requests = [(None, text[: length - 3], text[length - 3 : length]) for length in (60, WINDOW + 1, WINDOW + 2)]
    expected = [loglikelihood(context, continuation, yarn, plain) for _, context, continuation in requests]
    found = [value for value, _ in model._loglikelihood_tokens(requests)]
    assert found == pytest.approx(expected, abs=TOLERANCE)
    prompts = [TEXT[start : start + 400] for start in range(0, 8000, 1000)]
    settings = {"until": [], "max_gen_toks": 4}
    written = model.generate_until(instances("generate_until", [(prompt, settings) for prompt in prompts]))
    short, without = ([greedy(ids(loaded, prompt), 4, one, one) for prompt in prompts] for one in (yarn, plain))
    assert written == [loaded.tokenizer.decode(tokens, skip_special_tokens=True) for tokens in short]
    assert short != without  # else nothing was compared


def test_a_fault_of_a_task_s_own_code_is_told_in_one_line_with_its_name() -> None:
    message = r"^the harness task tiny must be one that can be measured, got ValueError: a b\. Correct its file\.$"
    with pytest.raises(ValueError, match=message), _failing("tiny"):
        raise ValueError("a\n  b")


def test_a_task_file_that_is_no_yaml_is_named(loaded: LoadedModel, tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text("task: [", encoding="utf-8")
    with pytest.raises(ValueError, match=r"tiny\.yaml must be YAML, got: .* Correct it\.$"):
        Harness(loaded, ["tiny"], folder=tmp_path, max_length=WINDOW, batch_size=1)


def test_the_harness_shows_no_bars_and_prints_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISABLE_MULTIPROC", "1")
    with _quiet():
        bootstrap_stderr(mean, [0.0, 1.0], iters=10)
    assert capsys.readouterr() == ("", "")
    bootstrap_stderr(mean, [0.0, 1.0], iters=10)
    assert "bootstrapping" in capsys.readouterr().out
