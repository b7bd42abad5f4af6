"""What a Python program or a notebook does with models: load, ask, train. README shows it."""
