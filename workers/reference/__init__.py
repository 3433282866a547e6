"""The reference model: a very small Llama that shows the whole problem, and the program that trained it."""
