"""Models in and out: Hugging Face folders, GGUF files, and what a model's name stands for."""
