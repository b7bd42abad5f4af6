"""The folder of a run: its record, its logs, and how it is found again."""
