"""Models in and out: Hugging Face folders, GGUF files, and what `-e` may name."""
