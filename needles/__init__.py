"""What a model reads: haystacks, needles, prompts, and documents of an exact length."""
