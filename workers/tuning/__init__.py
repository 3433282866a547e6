"""Mixed-context-window fine-tuning: documents, packs and their mixture, packed attention, and the training itself."""
