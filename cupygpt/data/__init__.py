"""From tokens to batches: tokenizers, token files and their records, loaders."""
