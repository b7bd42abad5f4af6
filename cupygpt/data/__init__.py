"""From text to tokens to batches: tokenizers, token files, loaders, built-in texts."""
