"""Which part of a text is held out for validation: whole documents, or the end of each.

Ends of documents are poor validation data where documents are short: the model is asked for the
last words of texts whose beginning it has learnt, and for end of text after every few of them.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MANY_HELD_OUT = 10
"""Whole documents are held out if at least so many of them make up the validation part ..."""
LONGEST_SHARE = 0.5
"""... and none of them is longer than this share of it, so that chance decides little."""

METHODS = ("auto", "documents", "ends")


@dataclass(frozen=True)
class Sizes:
    """How many documents there are, and how long all of them and the longest are, in bytes."""

    documents: int
    text_bytes: int
    longest_document: int


@dataclass(frozen=True)
class HoldOut:
    """What is held out: `fraction` of the text, whole documents or the end of each.

    `words` say so in the record; `reason` says for the user why it is done so.
    """

    fraction: float
    whole: bool
    words: str
    reason: str


def choose_hold_out(sizes: Sizes, fraction: float, method: str) -> HoldOut:
    """How to hold out `fraction` of the documents by `method`, one of METHODS; auto decides."""
    if fraction == 0:
        return HoldOut(0.0, whole=False, words="nothing", reason="--val-fraction 0")
    most = LONGEST_SHARE * fraction * sizes.text_bytes
    enough = math.ceil(MANY_HELD_OUT / fraction)
    counted = f"{sizes.documents:,} document{'s' * (sizes.documents > 1)}"
    if method != "auto":
        whole, reason = method == "documents", f"{counted}, --hold-out {method}"
    elif sizes.documents < enough:
        whole, reason = False, f"{counted}; whole ones from {enough:,} on"
    elif sizes.longest_document > most:
        whole = False
        reason = f"{counted}; whole ones if none were longer than {int(most):,} bytes"
    else:
        whole, reason = True, counted
    percent = f"{100 * fraction:g} %"
    words = (
        f"about {percent} of the documents, chosen by a hash of their content"
        if whole
        else f"the last {percent} of each document"
    )
    return HoldOut(fraction, whole, words, reason)


def hold_out_files(names: Sequence[str]) -> HoldOut:
    """How to hold out all documents of some files."""
    words = f"the file {names[0]}" if len(names) == 1 else f"{len(names):,} files"
    return HoldOut(0.0, whole=True, words=words, reason="--val")


def is_held_out(sha256: bytes, fraction: float) -> bool:
    """Whether a document whose UTF-8 text has this hash is for validation.

    It depends on nothing else, so a larger corpus keeps the split of a smaller one, and a text that
    occurs twice is never in both parts.
    """
    return int.from_bytes(sha256[:8], "big") < fraction * 2**64
