import math

from results.parity import ParityRow, parity_text

ROWS = [
    ParityRow(engine="vllm", version="0.33.0", setting="--max-model-len 8192", num_tokens=8192, factors="short",
              inv_freq_difference=1.5e-7, rotation_difference=3.04e-4, verdict="same"),
    ParityRow(engine="vllm", version="0.33.0", setting="--max-model-len 8192", num_tokens=8193, factors="short",
              inv_freq_difference=25.1, rotation_difference=2.29, verdict="differs: a token late"),
    ParityRow(engine="llama.cpp", version="0.3", setting="-c 512", num_tokens=512, logits_ratio=4.2, verdict="same"),
    ParityRow(engine="transformers", num_tokens=512, logits_ratio=math.inf, verdict="same"),
    ParityRow(engine="mlx", verdict="not verified here: not installed"),
]  # fmt: skip


def test_only_a_difference_that_was_found_differs() -> None:
    assert [row.differs for row in ROWS] == [False, True, False, False, False]


def test_the_table_says_engine_and_setting_once_and_leaves_out_what_was_not_looked_at() -> None:
    lines = parity_text(ROWS, width=140).splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("vllm"))
    assert lines[start].split() == [
        "vllm",
        "0.33.0",
        "--max-model-len",
        "8192",
        "8192",
        "short",
        "1.5e-07",
        "3.0e-04",
        "same",
    ]
    assert lines[start + 1].split() == ["8193", "short", "2.5e+01", "2.3e+00", "differs:", "a", "token", "late"]
    assert lines[start + 2].split() == ["llama.cpp", "0.3", "-c", "512", "512", "4.2", "x", "same"]
    assert lines[start + 3].split() == ["transformers", "512", "equal", "same"]
    assert lines[start + 4].split() == ["mlx", "not", "verified", "here:", "not", "installed"]


def test_the_table_is_plain_text_within_its_width() -> None:
    text = parity_text(ROWS, width=100)
    assert "\x1b" not in text
    assert all(len(line) <= 100 and line == line.rstrip() for line in text.splitlines())
