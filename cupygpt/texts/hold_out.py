"""Which part of a text is held out for validation: whole documents, or the end of each.

Ends of documents are poor validation data where documents are short: the model is asked for the
last words of texts whose beginning it has learnt, and for end of text after every few of them.
"""

import hashlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from cupygpt.data.token_files import Tokens
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.texts.text_files import TextFacts, read_documents

MANY_HELD_OUT = 10
"""Whole documents are held out if at least so many of them make up the validation part ..."""
LONGEST_SHARE = 0.5
"""... and none of them is longer than this share of it, so that chance decides little."""

METHODS = ("auto", "documents", "ends")

Parts: TypeAlias = tuple[Tokens, Tokens]
"""Training and validation tokens of one document."""


@dataclass(frozen=True)
class HoldOut:
    """What is held out: `fraction` of the text, whole documents or the end of each.

    `words` say so in the record; `reason` says for the user why it is done so.
    """

    fraction: float
    whole: bool
    words: str
    reason: str


def choose_hold_out(texts: Sequence[TextFacts], fraction: float, method: str) -> HoldOut:
    """How to hold out `fraction` of `texts` by `method`, one of METHODS; auto decides."""
    if fraction == 0:
        return HoldOut(0.0, whole=False, words="nothing", reason="--val-fraction 0")
    documents = sum(text.documents for text in texts)
    longest = max(text.longest_document for text in texts)
    most = LONGEST_SHARE * fraction * sum(text.text_bytes for text in texts)
    enough = math.ceil(MANY_HELD_OUT / fraction)
    counted = f"{documents:,} document{'s' * (documents > 1)}"
    if method != "auto":
        whole, reason = method == "documents", f"{counted}, --hold-out {method}"
    elif documents < enough:
        whole, reason = False, f"{counted}; whole ones from {enough:,} on"
    elif longest > most:
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


def split_documents(
    texts: Sequence[TextFacts], hold_out: HoldOut, tokenizer: Tokenizer, *, split: bool
) -> Iterator[Parts]:
    """The tokens of each document in training and validation part; `split` as in read_documents.

    Both parts start with end of text, if the tokenizer has one and they are not empty.
    """
    eot = np.array([tokenizer.eot], tokenizer.format.dtype)
    nothing = eot[:0]
    owed = 0.0
    for tokens, sha256 in _encoded_documents(texts, tokenizer, split=split):
        if hold_out.whole:
            train, val = tokens, nothing
            if is_held_out(sha256, hold_out.fraction):
                train, val = val, train
        else:
            train, val, owed = _split_off_end(tokens, owed + hold_out.fraction * tokens.size)
        yield (
            np.concatenate([eot, train]) if train.size else train,
            np.concatenate([eot, val]) if val.size else val,
        )


def is_held_out(sha256: bytes, fraction: float) -> bool:
    """Whether a document whose UTF-8 text has this hash is for validation.

    It depends on nothing else, so a larger corpus keeps the split of a smaller one, and a text that
    occurs twice is never in both parts.
    """
    return int.from_bytes(sha256[:8], "big") < fraction * 2**64


def _encoded_documents(
    texts: Sequence[TextFacts], tokenizer: Tokenizer, *, split: bool
) -> Iterator[tuple[Tokens, bytes]]:
    """The tokens of each document, and the SHA-256 of its text."""
    for text in texts:
        pieces: list[Tokens] = []
        digest = hashlib.sha256()
        for piece in read_documents(text.path, split=split):
            if piece is None:
                yield np.concatenate(pieces), digest.digest()
                pieces, digest = [], hashlib.sha256()
            else:
                pieces.append(tokenizer.encode(piece))
                digest.update(piece.encode())


def _split_off_end(tokens: Tokens, owed: float) -> tuple[Tokens, Tokens, float]:
    """Split the last int(owed) tokens off: the rest, these tokens, and what is still owed.

    `owed` is the number of tokens due to validation, with the fraction left from earlier documents.
    """
    count = min(int(owed), tokens.size)
    return tokens[: tokens.size - count], tokens[tokens.size - count :], owed - count
