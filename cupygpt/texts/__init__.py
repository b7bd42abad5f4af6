"""From texts, own and published ones, to token files, and what is held out for validation."""
