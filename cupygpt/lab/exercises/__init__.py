"""Exercises: what they are, how they are judged, where the learner's files lie."""
