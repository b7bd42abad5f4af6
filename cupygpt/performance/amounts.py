"""Numbers for a narrow table: two or four figures and a letter."""


def amount(value: float) -> str:
    """A number with k, M or G: 512, 16.4k, 8.7M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.1f}{letter}"
    return f"{value:.0f}"


def bytes_words(count: int) -> str:
    """A number of bytes: 512 B, 8.2 KB, 2.1 MB. A KB is 1000 bytes, as in the GB/s of a GPU."""
    number = amount(count)
    if number[-1].isdigit():
        return f"{number} B"
    return f"{number[:-1]} {number[-1].upper()}B"


def percent(share: float) -> str:
    """A share: 100%, 6.1%."""
    hundred = 100 * share
    return f"{hundred:.1f}%" if hundred < 9.95 else f"{hundred:.0f}%"


def two_figures(value: float) -> str:
    """A number with two figures, as no estimate is better: 0.52, 1.7, 21, 450."""
    rounded = float(f"{value:.1e}")
    if rounded == round(rounded) and abs(value - rounded) < 1e-9:
        return f"{rounded:.0f}"
    if rounded >= 10:
        return f"{rounded:.0f}"
    return f"{rounded:.1f}" if rounded >= 1 else f"{rounded:.2g}"


def words_of_time(microseconds: float) -> str:
    """A time with two figures: 21 us, 9.0 ms."""
    if microseconds >= 995:
        return f"{two_figures(microseconds / 1e3)} ms"
    return f"{two_figures(microseconds)} us"
