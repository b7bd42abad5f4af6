"""The exercises of each ladder, one table a file."""
