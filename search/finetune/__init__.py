"""`ropewalk finetune`: data, training, a model folder, and what was measured before and after."""
