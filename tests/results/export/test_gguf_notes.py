"""What Ollama's user is told, who has no command line of llama.cpp."""

from dataclasses import replace

from results.export.gguf_notes import ollama_notes
from tests.results.export.examples import FACTORS


def test_ollamas_user_is_told_nothing_that_cannot_be_done_there() -> None:
    factors = replace(FACTORS, original_length=500, target_length=2048, attention_temperature=1.25)
    told = " ".join(ollama_notes(factors, "dual", 1.0))
    for unknown in ("llama-server", "-c ", "--yarn-attn-factor", "--context-shift"):
        assert unknown not in told
    assert "the long list where num_ctx is above 500" in told
    assert "num_ctx 500 takes the long list, num_ctx 256 or less the short one" in told
    assert "1.25 with the short list too, instead of 1, and Ollama has no setting for it" in told
    assert "temperature" not in " ".join(ollama_notes(factors, "dual", 1.25))
    assert ollama_notes(factors, "pinned", 1.25) == ("Both lists are the long one: short prompts rotate with it too.",)
