"""One run: from flags to a finished run folder."""
