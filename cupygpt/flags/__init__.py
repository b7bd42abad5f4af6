"""What a run is asked to do: every flag, with its default, range, label and help."""
