"""Token files, loaders and built-in texts."""
