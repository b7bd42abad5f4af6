"""Figures of a run in a form that is easy to read: sizes, counts, durations, smoothed means."""

import math

SMOOTHING = 0.9
"""Weight of the earlier values in the smoothed mean."""


class SmoothedMean:
    """Exponential mean of a series, corrected at its start, when few values have been added."""

    def __init__(self) -> None:
        self._sum, self._weight = 0.0, 0.0

    def add(self, value: float) -> float:
        """Add a value; returns the mean so far."""
        self._sum = SMOOTHING * self._sum + (1.0 - SMOOTHING) * value
        self._weight = SMOOTHING * self._weight + (1.0 - SMOOTHING)
        return self._sum / self._weight


def format_bytes(count: int) -> str:
    """A number of bytes in KiB, from 1 MiB on in MiB, from 1 GiB on in GiB."""
    if count >= 2**30:
        return f"{count / 2**30:.2f} GiB"
    return f"{count / 2**20:.0f} MiB" if count >= 2**20 else f"{count / 2**10:.0f} KiB"


def count_words(value: float) -> str:
    """A number in thousands or millions: 950, 10.2k, 1.25M."""
    if value >= 1e6:
        return f"{value / 1e6:.2f}M"
    return f"{value / 1e3:.1f}k" if value >= 1e3 else f"{value:.0f}"


def duration_words(seconds: float) -> str:
    """Seconds as m:ss or h:mm:ss, rounded."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(int(seconds + 0.5), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
