"""lmms-eval's tasks: its documents, prompts and scoring; generation and everything shared between cells from here."""
