"""Data sets that others have published: how they get here."""
