"""Tasks of lm-evaluation-harness on the reference model: plain forwards of transformers say what is right."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import pytest
import torch
from huggingface_hub import constants
from lm_eval.api.instance import Instance
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from results.evaluation import HarnessScore
from rope.methods import METHODS
from rope.temperature import attention_temperature
from workers.evaluate import Contender
from workers.harness import Harness
from workers.model import LoadedModel, load_model
from workers.window_switch import SwitchingLM

REFERENCE = Path(__file__).parents[2] / "workers" / "reference"
WINDOW, SCALE = 256, 4
LONGEST = SCALE * WINDOW
TEXT = (REFERENCE / "tom_sawyer.txt").read_text(encoding="utf-8")[30_000:]
# float32, sums of a few hundred logarithms in another order
TOLERANCE = 2e-3

LOCAL = """
dataset_path: json
dataset_kwargs: {data_files: {test: data/questions.jsonl}}
test_split: test
doc_to_text: "{{question}}"
"""
CHOICE = f"""{LOCAL}
task: tiny_choice
output_type: multiple_choice
doc_to_target: "{{{{answer}}}}"
doc_to_choice: "{{{{choices}}}}"
metric_list: [{{metric: acc, aggregation: mean, higher_is_better: true}}]
metadata: {{version: 3.0}}
"""
WRITING = f"""{LOCAL}
task: tiny_writing
output_type: generate_until
doc_to_target: " the"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 40, do_sample: false}}
"""
ROLLING = """
include: 0.yaml
task: tiny_rolling
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{question}}"
doc_to_choice: null
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""
GROUP = """
group: tiny_group
task: [tiny_choice, tiny_other]
aggregate_metric_list: [{metric: acc, weight_by_size: true}]
metadata: {version: 2}
"""


def questions(num_characters: Sequence[int]) -> list[dict[str, object]]:
    rows: list[dict[str, object]] = []
    for number, length in enumerate(num_characters):
        question = TEXT[2000 * number : 2000 * number + length].rstrip()
        choices = [" the", " and then he said", " Tom", "."]
        rows.append({"question": question, "choices": choices, "answer": number % 4})
    return rows


def write_tasks(folder: Path, *tasks: str) -> Path:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    # 20 to 900 tokens of the reference tokenizer, on both sides of the window
    rows = questions([40, 200, 400, 560, 900, 1400, 1900])
    for name, chosen in (("questions", rows), ("other", rows[:3])):
        text = "".join(json.dumps(row) + "\n" for row in chosen)
        (folder / "data" / f"{name}.jsonl").write_text(text, encoding="utf-8")
    for number, task in enumerate(tasks):
        (folder / f"{number}.yaml").write_text(task, encoding="utf-8")
    return folder


@pytest.fixture(scope="module", autouse=True)
def local(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No hub, and a cache of its own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


@pytest.fixture(scope="module")
def loaded() -> LoadedModel:
    return load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")


@pytest.fixture(scope="module")
def plain() -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(REFERENCE / "model", dtype=torch.float32)


@pytest.fixture(scope="module")
def yarn() -> PreTrainedModel:
    """The model with transformers' own YaRN."""
    config = AutoConfig.from_pretrained(REFERENCE / "model")
    config.rope_parameters = {
        "rope_type": "yarn",
        "rope_theta": 500.0,
        "factor": float(SCALE),
        "original_max_position_embeddings": WINDOW,
    }
    return AutoModelForCausalLM.from_pretrained(REFERENCE / "model", config=config, dtype=torch.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    other = CHOICE.replace("tiny_choice", "tiny_other").replace("questions", "other")
    return write_tasks(tmp_path_factory.mktemp("tasks"), CHOICE, WRITING, ROLLING, GROUP, other)


@pytest.fixture(scope="module")
def build(loaded: LoadedModel, folder: Path) -> Callable[..., Harness]:
    def made(*names: str, **changes: object) -> Harness:
        settings = {"folder": folder, "max_length": LONGEST, "batch_size": 4} | changes
        return Harness(loaded, names, **settings)  # type: ignore[arg-type]

    return made


def contender(name: str) -> Contender:
    factors = METHODS[name](32, 500.0, original_length=WINDOW, target_length=LONGEST)
    kind = "yarn" if name == "yarn" else "none"
    temperature = attention_temperature(kind, scale=SCALE, original_length=WINDOW)
    return Contender(name, factors.with_temperature(temperature))


def switching(loaded: LoadedModel, name: str, *, batch_size: int = 4, max_length: int = LONGEST) -> SwitchingLM:
    model = SwitchingLM(loaded, max_length=max_length, batch_size=batch_size, seed=0)
    model.factors = contender(name).factors
    return model


def instances(kind: str, arguments: Sequence[tuple[object, ...]]) -> list[Instance]:
    return [Instance(request_type=kind, doc={}, arguments=given, idx=0) for given in arguments]


@torch.no_grad()
def logits(token_ids: Sequence[int], plain: PreTrainedModel, long: PreTrainedModel) -> Tensor:
    """Logits of every position by the model that belongs to so many tokens, shape (tokens, vocabulary)."""
    model = long if len(token_ids) > WINDOW else plain
    found: Tensor = model(input_ids=torch.tensor([list(token_ids)])).logits[0]
    return found


def loglikelihood(
    context: Sequence[int], continuation: Sequence[int], plain: PreTrainedModel, long: PreTrainedModel
) -> float:
    whole = [*context, *continuation]
    logarithms = logits(whole[:-1], plain, long)[-len(continuation) :].log_softmax(dim=-1)
    return float(logarithms[torch.arange(len(continuation)), torch.tensor(continuation)].sum())


def ids(loaded: LoadedModel, text: str) -> list[int]:
    found: list[int] = loaded.tokenizer.encode(text)
    return found


def by_metric(scores: Sequence[HarnessScore]) -> dict[str, HarnessScore]:
    return {score.metric: score for score in scores}


@pytest.mark.parametrize("name", ["none", "yarn"])
def test_accuracy_is_that_of_plain_forwards_by_transformers(
    name: str, build: Callable[..., Harness], loaded: LoadedModel, plain: PreTrainedModel, yarn: PreTrainedModel
) -> None:
    long = yarn if name == "yarn" else plain
    right, lengths = [], []
    for row in questions([40, 200, 400, 560, 900, 1400, 1900]):
        context = ids(loaded, str(row["question"]))
        lengths.append(len(context))
        values = []
        for choice in row["choices"]:  # type: ignore[attr-defined]
            # The harness puts a space between question and choice
            continuation = ids(loaded, f"{row['question']} {choice}")[len(context) :]
            values.append(loglikelihood(context, continuation, plain, long))
        right.append(values.index(max(values)) == row["answer"])
    assert min(lengths) < WINDOW < sorted(lengths)[-2]
    (score,) = build("tiny_choice").scores(contender(name), "tiny_choice")
    assert (score.task, score.version, score.metric, score.num_samples) == ("tiny_choice", "3.0", "acc,none", 7)
    assert score.value == pytest.approx(sum(right) / 7)
    mean = sum(right) / 7
    assert score.stderr == pytest.approx((mean * (1 - mean) / 6) ** 0.5)  # sample variance over n


def test_rows_at_the_border_have_the_log_likelihood_of_the_model_that_belongs_to_them_in_any_batch(
    loaded: LoadedModel, plain: PreTrainedModel, yarn: PreTrainedModel
) -> None:
    text = ids(loaded, TEXT[:9000])
    # The last token of a continuation is never read: 256 tokens are read of a row of 257
    lengths = [WINDOW + 2, WINDOW + 1, WINDOW, 40, 700, WINDOW + 3, WINDOW + 1]
    requests = [(None, text[: length - 3], text[length - 3 : length]) for length in lengths]
    expected = [loglikelihood(context, continuation, plain, yarn) for _, context, continuation in requests]
    for batch_size in (1, 3, 8):
        found = switching(loaded, "yarn", batch_size=batch_size)._loglikelihood_tokens(requests)
        assert [value for value, _ in found] == pytest.approx(expected, abs=TOLERANCE)
    others = [loglikelihood(context, continuation, yarn, plain) for _, context, continuation in requests]
    # What is compared would be worth nothing if both models said the same
    assert min(abs(one - other) for one, other in zip(expected, others, strict=True)) > 10 * TOLERANCE


def test_inside_the_window_every_contender_is_the_model_as_it_was_loaded_and_beyond_it_is_not(
    loaded: LoadedModel,
) -> None:
    text = ids(loaded, TEXT[:9000])
    requests = [(None, text[: length - 5], text[length - 5 : length]) for length in (50, WINDOW + 1, WINDOW + 2, 800)]
    none, yarn = (switching(loaded, name)._loglikelihood_tokens(requests) for name in ("none", "yarn"))
    assert none[:2] == yarn[:2]
    assert all(abs(one[0] - other[0]) > 0.01 for one, other in zip(none[2:], yarn[2:], strict=True))


@pytest.mark.parametrize("max_length", [300, LONGEST])
def test_rolling_likelihood_is_that_of_windows_of_the_longest_length(
    max_length: int, loaded: LoadedModel, plain: PreTrainedModel, yarn: PreTrainedModel
) -> None:
    text = TEXT[:1500]
    tokens = ids(loaded, text)
    assert 300 < len(tokens) < 600
    bos = loaded.tokenizer.bos_token_id
    assert isinstance(bos, int)
    expected = loglikelihood([bos], tokens[:max_length], plain, yarn)
    if len(tokens) > max_length:
        # The second window ends with the text, and reads as much before it as fits
        second = tokens[max_length:]
        expected += loglikelihood(tokens[-max_length - 1 : max_length], second, plain, yarn)
    (found,) = switching(loaded, "yarn", max_length=max_length).loglikelihood_rolling(
        instances("loglikelihood_rolling", [(text,)])
    )
    assert found == pytest.approx(expected, abs=TOLERANCE)


def greedy(prompt: Sequence[int], num_tokens: int, plain: PreTrainedModel, long: PreTrainedModel) -> list[int]:
    tokens: list[int] = []
    for _ in range(num_tokens):
        tokens.append(int(logits([*prompt, *tokens], plain, long)[-1].argmax()))
    return tokens


def test_texts_are_those_of_greedy_forwards_over_the_border_up_to_what_ends_them(
    loaded: LoadedModel, plain: PreTrainedModel, yarn: PreTrainedModel
) -> None:
    model = switching(loaded, "yarn")
    texts = [TEXT[:600], TEXT[3000:3700], TEXT[5000:7000]]
    # 45 tokens are more than one piece
    settings = {"until": [], "max_gen_toks": 45, "do_sample": False}
    whole = model.generate_until(instances("generate_until", [(text, settings) for text in texts]))
    prompts = [ids(loaded, text) for text in texts]
    assert any(len(prompt) < WINDOW < len(prompt) + 40 for prompt in prompts)
    for prompt, text in zip(prompts, whole, strict=True):
        assert text == loaded.tokenizer.decode(greedy(prompt, 45, plain, yarn), skip_special_tokens=True)
    word = whole[0][25:29]
    settings = {"until": [word, "never"], "max_gen_toks": 45}
    ended = model.generate_until(instances("generate_until", [(text, settings) for text in texts]))
    assert ended == [text.split(word)[0] for text in whole]
    assert len(ended[0]) <= 25


def test_drawn_texts_depend_on_the_seed_alone_and_copies_of_a_prompt_differ(loaded: LoadedModel) -> None:
    settings = {"until": ["\n\n"], "max_gen_toks": 12, "do_sample": True, "temperature": 1.0}
    requests = instances("generate_until", [(TEXT[:300], settings)] * 3)
    one = switching(loaded, "yarn").generate_until(requests)
    assert one == switching(loaded, "yarn", batch_size=1).generate_until(requests)
    assert len(set(one)) == 3


def test_a_task_of_texts_and_one_of_rolling_likelihood_are_measured(build: Callable[..., Harness]) -> None:
    harness = build("tiny_writing", "tiny_rolling", limit=2)
    assert harness.task_names == ["tiny_writing", "tiny_rolling"]
    found = by_metric([row for name in harness.task_names for row in harness.scores(contender("yarn"), name)])
    assert found.keys() == {"exact_match,none", "bits_per_byte,none"}
    assert all(score.num_samples == 2 and score.value is not None for score in found.values())
    assert 0.5 < found["bits_per_byte,none"].value < 4  # type: ignore[operator]


def test_a_group_is_its_tasks_and_their_mean_as_it_says(build: Callable[..., Harness]) -> None:
    harness = build("tiny_group")
    assert harness.task_names == ["tiny_choice", "tiny_other"]
    scores = [row for name in harness.task_names for row in harness.scores(contender("yarn"), name)]
    (group,) = harness.group_scores(scores)
    values = [score.value for score in scores]
    assert None not in values
    assert (group.task, group.metric, group.version, group.num_samples) == ("tiny_group", "acc,none", "2", 10)
    assert group.value == pytest.approx((7 * values[0] + 3 * values[1]) / 10)  # type: ignore[operator]
    assert harness.group_scores(scores[:1]) == []


def test_chat_prompts_are_those_of_the_template(build: Callable[..., Harness], tmp_path: Path) -> None:
    chatting = load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")
    chatting.tokenizer.chat_template = (
        "{% for message in messages %}[{{ message.role }}: {{ message.content }}]{% endfor %}"
        "{% if add_generation_prompt %}[assistant:{% endif %}"
    )
    by_hand = CHOICE.replace("{{question}}", "[user: {{question}}][assistant:") + 'target_delimiter: ""\n'
    expected = build("tiny_choice", folder=write_tasks(tmp_path / "by_hand", by_hand), limit=5)
    folder = write_tasks(tmp_path / "chat", CHOICE + 'target_delimiter: ""\n')
    found = Harness(chatting, ["tiny_choice"], folder=folder, max_length=LONGEST, batch_size=4, limit=5, is_chat=True)
    (one,), (other,) = (harness._tasks.values() for harness in (found, expected))
    assert [row.args for row in one.instances] == [row.args for row in other.instances]
    (score,) = found.scores(contender("yarn"), "tiny_choice")
    assert score.value == expected.scores(contender("yarn"), "tiny_choice")[0].value


def test_logits_that_are_no_numbers_give_no_score(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    broken = load_model(str(REFERENCE / "model"), dtype="float32", device="cpu")
    broken.model.get_input_embeddings().weight.data[:] = torch.nan  # type: ignore[operator]
    harness = Harness(broken, ["tiny_choice"], folder=folder, max_length=LONGEST, batch_size=4, limit=1)
    (score,) = harness.scores(contender("yarn"), "tiny_choice")
    assert (score.value, score.stderr) == (None, None)
    assert "yarn, tiny_choice: 4 rows have no finite logits: no score" in caplog.text


def test_rows_that_are_cut_are_said(build: Callable[..., Harness], caplog: pytest.LogCaptureFixture) -> None:
    build("tiny_choice", max_length=WINDOW).scores(contender("yarn"), "tiny_choice")
    assert "rows are longer than 256 tokens and were cut on the left; raise --lengths" in caplog.text


def test_the_model_and_its_tokenizer_are_given_back_as_they_were(
    build: Callable[..., Harness], loaded: LoadedModel, plain: PreTrainedModel
) -> None:
    build("tiny_choice").scores(contender("yarn"), "tiny_choice")
    assert loaded.tokenizer.pad_token is None
    text = ids(loaded, TEXT[:9000])[:400]
    assert torch.equal(logits(text, loaded.model, loaded.model), logits(text, plain, plain))


def test_the_fingerprint_is_that_of_prompts_data_and_files(
    build: Callable[..., Harness], tmp_path: Path, folder: Path
) -> None:
    twin = write_tasks(tmp_path / "twin", *(file.read_text() for file in sorted(folder.glob("*.yaml"))))
    whole = build("tiny_choice").fingerprint()
    assert build("tiny_choice", folder=twin).fingerprint() == whole
    assert build("tiny_choice", limit=3).fingerprint() != whole
    data = twin / "data" / "questions.jsonl"
    data.write_text(data.read_text(encoding="utf-8").replace('"answer": 3', '"answer": 2'), encoding="utf-8")
    assert build("tiny_choice", folder=twin).fingerprint() != whole


def test_the_extra_must_be_installed(build: Callable[..., Harness], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)  # as Python knows a package that must not be imported
    with pytest.raises(ValueError, match=r"the extra `eval` must be installed for --harness, got none\. pip install"):
        build("tiny_choice")


@pytest.mark.parametrize(
    ("name", "task", "changes", "message"),
    [
        # One case only: the index of all of the harness's tasks takes seconds
        ("tiny_choise", CHOICE, {}, "got tiny_choise. Near ones: tiny_choice.* Correct it, or give --harness-tasks"),
        ("tiny_choice", CHOICE, {"folder": Path("nowhere")}, "--harness-tasks must be a folder of task files, got n"),
        ("tiny_choice", CHOICE.replace("questions", "none"), {}, "must be one that can be read with its data, got "),
        ("tiny_choice", CHOICE.replace("path: json", "path: me/mine"), {}, "Without the hub, its file must name lo"),
        ("tiny_choice", CHOICE.replace("{{question}}", "{{question"), {}, "task tiny_choice must be one that can be "),
        ("tiny_choice", CHOICE + "unsafe_code: true\n", {}, "a task must not run code that the model wrote, got tiny"),
        ("tiny_choice", CHOICE, {"is_chat": True}, "--prompt chat must have a tokenizer with a chat template, got no"),
        ("tiny_writing", WRITING.replace("do_sample: false", "top_k: 5"), {}, "among until, .* temperature and top_p"),
        ("tiny_writing", WRITING.replace("do_sample: false", "num_beams: 5"), {}, "and top_p, got num_beams. Drop"),
        ("tiny_writing", WRITING.replace("toks: 40", "toks: 1024"), {}, "room for a prompt in 1024 tokens, got 1024"),
    ],
    ids=lambda value: None if value == {} or "\n" in str(value) else str(value),
)
def test_what_cannot_be_measured_is_refused(
    name: str, task: str, changes: dict[str, object], message: str, build: Callable[..., Harness], tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, **({"folder": write_tasks(tmp_path, task)} | changes))


def test_a_continuation_that_is_longer_than_what_may_be_read_is_refused(loaded: LoadedModel) -> None:
    text = ids(loaded, TEXT[:9000])
    with pytest.raises(ValueError, match="a continuation must have 1 to 300 tokens, got 301"):
        switching(loaded, "yarn", max_length=300)._loglikelihood_tokens([(None, text[:1], text[1:302])])
