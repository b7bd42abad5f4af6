"""The network: its tensors, its passes, its memory, its text."""
