"""LongChat's topic retrieval: the first of many topics of a conversation."""

from collections.abc import Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np

from needles.breaks import nearest_break
from needles.corpus import Split
from needles.fitting import Draft, fit_haystack
from needles.frame import Frame, build_frame
from needles.haystack import draw_passages
from needles.passage import Passage
from needles.sample import Sample, check_count
from needles.tokenizer import Tokenizer, decode

TASK = "topic_retrieval"
NUM_GENERATED = 50
"""Tokens that may be generated; LongChat's."""
TOKENS_PER_TOPIC = 640
"""Tokens of a topic's conversation; about those of LongChat's, whose 25 topics make 16k."""

_TASK_TEXT = (
    "Below is a record of our previous conversation on {num} different topics. You are the ASSISTANT, and I am the "
    "USER. At the beginning of each topic, the USER will say 'I would like to discuss the topic of <TOPIC>'. Memorize "
    "each <TOPIC>. At the end of the record, I will ask you to retrieve the first topic. Now the record start. "
)
_TOPIC = (
    "USER: I would like to discuss the topic of {topic}. \n ASSISTANT: Sure, I'd be happy to talk about that with you! "
    "{talk} \n USER: Great, this is the end of our discussion on the topic {topic}, let's talk about the next topic."
)
_QUESTION = (
    " Now the record ends. What is the first topic(s) we discussed? Only give me the topic name. "
    "Do not summarize yourself."
)
_ANSWER_START = "\n ASSISTANT: The first topic is"
_ASPECTS = ("the history of", "the benefits of", "the art of", "the future of", "the science of", "the economics of")
_SUBJECTS = """
beekeeping tea chess opera origami volcanoes sailing carpentry glaciers ballet cryptography yoga cheese bridges
astronomy calligraphy vaccines gardening railways typography dinosaurs coffee surfing democracy pottery whales
photography insurance poetry submarines perfume cycling libraries fashion robots mythology fishing jazz orchards
lighthouses weaving cartography chocolate meditation earthquakes puppetry archery taxation seaweed windmills
"""
SUBJECTS: tuple[str, ...] = tuple(_SUBJECTS.split())
"""What topics are about; those of one sample are all different, so that a subject tells its topic."""


def build_topic_samples(
    tokenizer: Tokenizer,
    source: str | Path,
    *,
    num_samples: int,
    length: int,
    rng: np.random.Generator,
    num_topics: int | None = None,
    split: Split = "heldout",
    is_chat: bool = False,
    num_generated: int = NUM_GENERATED,
    column: str = "text",
) -> list[Sample]:
    """Return records of conversations on many topics, and the question for the first.

    Frame, opening and end of each conversation are LongChat's; what is said between them is the user's corpus instead
    of LongChat's own file, so that prompts have any exact length. LongChat lets another model judge the answers; here
    topics have subjects of one word, and the first one's must appear.

    Args:
        tokenizer: The model's.
        source: The corpus; see `corpus.read_texts`.
        num_samples: How many; at least 1.
        length: Tokens of prompt and generated text together.
        rng: Draws topics and places in the corpus; the same state gives the same samples.
        num_topics: Topics in a record, 2 to 50; one for each 640 tokens within these bounds if None.
        split: The part of the corpus to use.
        is_chat: Whether to ask in the model's chat template. For a base model the answer is begun, in LongChat's words
            for such.
        num_generated: Tokens that may be generated for each.
        column: Field or column of the corpus that holds the text.

    Returns:
        Samples of the task `topic_retrieval`, with depth 0.

    Raises:
        ValueError: `num_samples` or `num_generated` is below 1, `num_topics` is out of range, `length` is too short
            for them, the corpus cannot be read or is too short, the tokenizer has no chat template or cannot encode a
            topic.

    Source: LongChat, DachengLi1/LongChat, longeval/utils.py.
    """
    check_count("num_samples", num_samples)
    check_count("num_generated", num_generated)
    if num_topics is None:
        num_topics = min(max(2, length // TOKENS_PER_TOPIC), len(SUBJECTS))
    if not 2 <= num_topics <= len(SUBJECTS):
        raise ValueError(f"num_topics must lie between 2 and {len(SUBJECTS)}, got {num_topics}. Ask for others.")
    frame = build_frame(tokenizer, is_chat=is_chat)
    answer_start = "" if is_chat else _ANSWER_START
    passages = draw_passages(source, split=split, num_passages=num_samples, num_tokens=length, rng=rng, column=column)
    samples = []
    for number, passage in enumerate(passages):
        subjects = [SUBJECTS[index] for index in rng.permutation(len(SUBJECTS))[:num_topics]]
        topics = [f"{_ASPECTS[rng.integers(len(_ASPECTS))]} {subject}" for subject in subjects]
        ids = _fitted_topics(tokenizer, frame, topics, passage, length - num_generated, answer_start)
        token_ids = np.array(ids, dtype=np.int32)
        digest = sha256(token_ids.astype("<i4").tobytes()).hexdigest()
        samples.append(
            Sample(
                task=TASK,
                id=f"{TASK}-{length}-{number}-{num_topics}-topics-{digest[:12]}",
                token_ids=token_ids,
                answers=(subjects[0],),
                num_generated=num_generated,
                length=length,
                depth=0.0,
            )
        )
    return samples


def _fitted_topics(
    tokenizer: Tokenizer, frame: Frame, topics: Sequence[str], passage: Passage, num_tokens: int, answer_start: str
) -> list[int]:
    def write(num_characters: int, ending: str) -> Draft:
        text = passage.text[:num_characters]
        cuts = [nearest_break(text, round(share * len(text) / len(topics))) for share in range(len(topics))]
        talks = [text[start:end].strip() for start, end in zip(cuts, [*cuts[1:], len(text)], strict=True)]
        talks[-1] += ending
        body = "".join(_TOPIC.format(topic=topic, talk=talk) for topic, talk in zip(topics, talks, strict=True))
        message = f"{_TASK_TEXT.format(num=len(topics))}{body}{_QUESTION}"
        return Draft(num_characters, (0.0,), frame.encode(tokenizer, message, answer_start))

    ids = fit_haystack(write, num_tokens, num_characters=len(passage.text), passage=passage.id).token_ids
    if "".join(topics[0].split()) not in "".join(decode(tokenizer, ids).split()):
        raise ValueError(
            f"the tokenizer must be able to encode {topics[0]!r}, got a prompt without it back. "
            "Use a model whose tokenizer covers it."
        )
    return ids
