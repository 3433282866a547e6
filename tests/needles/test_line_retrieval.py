"""LongChat's line retrieval: its wording, exact lengths, and an answer that one line alone holds."""

import re

import numpy as np
import pytest
from tokenizers import Regex, models, pre_tokenizers
from tokenizers import Tokenizer as RawTokenizer
from transformers import PreTrainedTokenizerFast

from needles.line_retrieval import build_line_samples
from needles.sample import Sample
from needles.tokenizer import decode
from needles.words import ADJECTIVES, DISTRACTOR_NOUNS, NOUNS
from tests.needles.conftest import TOKENIZERS, digitless_bpe, wrapped

LINES_TASK = (
    "Below is a record of lines I want you to remember. Each line begins with 'line <line index>' and contains a "
    "'<REGISTER_CONTENT>' at the end of the line as a numerical value. For each line index, memorize its corresponding "
    "<REGISTER_CONTENT>. At the end of the record, I will ask you to retrieve the corresponding <REGISTER_CONTENT> of "
    "a certain line index. Now the record start:\n\n"
)
LINE = re.compile(r"line ([a-z]+(?:-[a-z]+)+): REGISTER_CONTENT is <(\d+)>")
LINE_OF_WORDS = re.compile(r"line [a-z]+ - [a-z]+ : REGISTER_CONTENT is < \d+ >")
LENGTHS = (*range(1000, 1006), 2048)


def lines(tokenizer: PreTrainedTokenizerFast, *, num: int = 5, length: int = 1500, seed: int = 0) -> list[Sample]:
    return build_line_samples(tokenizer, num_samples=num, length=length, rng=np.random.default_rng(seed))


def text_of(tokenizer: PreTrainedTokenizerFast, sample: Sample) -> str:
    return decode(tokenizer, sample.token_ids.tolist())


def test_a_record_of_lines_is_word_for_word_longchats(byte_level: PreTrainedTokenizerFast) -> None:
    for sample in lines(byte_level):
        text = text_of(byte_level, sample)
        found = LINE.findall(text)
        assert dict(found)
        asked = re.search(r"\nNow the record is over\. Tell me what is the <REGISTER_CONTENT> in line (\S+)\?", text)
        assert asked
        index = asked[1]
        record = "".join(f"line {name}: REGISTER_CONTENT is <{number}>\n" for name, number in found)
        assert text == (
            f"{LINES_TASK}{record}\nNow the record is over. Tell me what is the <REGISTER_CONTENT> in line {index}? "
            f"I need the number.\nLine <{index}>: <REGISTER_CONTENT> is"
        )
        assert sample.answers == (dict(found)[index],)
        assert sample.depth == [name for name, _ in found].index(index) / len(found)
        assert f"-{len(found)}-lines-" in sample.id
        assert len(dict(found)) == len(found)
        assert all(1 <= int(number) <= 50_000 for _, number in found)


def test_only_one_line_holds_the_answer(byte_level: PreTrainedTokenizerFast) -> None:
    for sample in lines(byte_level, num=8):
        numbers = [number for _, number in LINE.findall(text_of(byte_level, sample))]
        assert len(sample.answers[0]) == 5
        assert sum(sample.answers[0] in number for number in numbers) == 1


@pytest.mark.parametrize("name", ["byte-level", "merging", "eos", "chat"])
def test_records_of_lines_have_exactly_the_length_asked_for(name: str) -> None:
    tokenizer = TOKENIZERS[name]()
    for length in LENGTHS:
        for sample in lines(tokenizer, num=3, length=length):
            assert len(sample.token_ids) + 100 == sample.length == length


def test_where_all_lines_are_equally_long_the_most_that_fit_are_taken() -> None:
    tokenizer = word_tokenizer()
    # a line is `line`, two words with a hyphen, a colon, two more words, a number in brackets: ten tokens
    samples = [lines(tokenizer, num=1, length=length)[0] for length in range(900, 920)]
    for asked_for, sample in enumerate(samples, start=900):
        assert asked_for == sample.length
        assert asked_for - 10 < len(sample.token_ids) + 100 <= asked_for
        assert len(LINE_OF_WORDS.findall(text_of(tokenizer, sample))) == int(sample.id.split("-")[3])
    assert len({len(sample.token_ids) for sample in samples}) == 3


def test_lines_asked_for_lie_everywhere(byte_level: PreTrainedTokenizerFast) -> None:
    depths = [sample.depth for sample in lines(byte_level, num=20) if sample.depth is not None]
    assert min(depths) < 0.2
    assert max(depths) > 0.8


def test_a_record_with_very_many_lines_has_indices_of_three_words() -> None:
    tokenizer = word_tokenizer()
    num_pairs = len(ADJECTIVES) * len(NOUNS + DISTRACTOR_NOUNS)
    sample = lines(tokenizer, num=1, length=6 * num_pairs)[0]  # a line has 12 tokens then
    indices = re.findall(r"line ([a-z]+ - [a-z]+ - [a-z]+) :", text_of(tokenizer, sample))
    assert len(set(indices)) == len(indices) == int(sample.id.split("-")[3]) > 5_000


def test_ids_are_unique_and_a_seed_gives_the_same_samples(byte_level: PreTrainedTokenizerFast) -> None:
    one, again, other = lines(byte_level), lines(byte_level), lines(byte_level, seed=1)
    assert [sample.id for sample in one] == [sample.id for sample in again]
    assert len({sample.id for sample in (*one, *other)}) == len(one) + len(other)


def test_chat_models_are_asked_in_their_template(chat: PreTrainedTokenizerFast) -> None:
    sample = build_line_samples(chat, num_samples=1, length=1000, rng=np.random.default_rng(0), is_chat=True)[0]
    assert text_of(chat, sample).startswith("<|user|>\nBelow is a record of lines")
    assert text_of(chat, sample).endswith("? I need the number.<|end|>\n<|assistant|>\n")
    assert len(sample.token_ids) + 100 == sample.length == 1000


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, r"^num_samples must be at least 1, got 0\. "),
        ({"num_generated": 0}, r"^num_generated must be at least 1, got 0\. "),
        ({"length": 60}, r"^length must leave at least \d+ tokens for the prompt and one line, got -40\. Ask for lon"),
        ({"length": 150}, r"^length must leave at least \d+ tokens for the prompt and one line, got 50\. Ask for lon"),
    ],
)
def test_records_of_lines_that_cannot_be_are_refused(
    byte_level: PreTrainedTokenizerFast, options: dict[str, object], message: str
) -> None:
    arguments: dict[str, object] = {"num_samples": 1, "length": 1000, "rng": np.random.default_rng(0)} | options
    with pytest.raises(ValueError, match=message):
        build_line_samples(byte_level, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["digitless", "metaspace"])  # the latter has digits, but neither `<` nor `_`
def test_a_tokenizer_that_does_not_cover_a_line_is_refused(name: str) -> None:
    tokenizer = (TOKENIZERS | {"digitless": digitless_bpe})[name]()
    with pytest.raises(
        ValueError, match=r"^the tokenizer must be able to encode 'line .* REGISTER_CONTENT is <\d+>', "
    ):
        lines(tokenizer)


def word_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer for which each word, number and sign is one token."""
    signs = ["-", ":", "<", ">", "line", "REGISTER_CONTENT", "is"]
    words = ["<unk>", *signs, *ADJECTIVES, *NOUNS, *DISTRACTOR_NOUNS, *map(str, range(50_001))]
    raw = RawTokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"[-:<>?]"), behavior="isolated")]
    )
    return wrapped(raw, unk_token="<unk>")
