"""Checkpoints on disk: weights and training state in llm.c's formats, as complete sets."""
