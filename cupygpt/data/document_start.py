"""How the documents of a data set begin, and with which ids a text that continues a prompt."""

from collections.abc import Sequence

import numpy as np

from cupygpt.data.token_files import TokenShard
from cupygpt.data.tokenizer import Tokenizer

MANY_DOCUMENTS = 100
"""After end of text a model has something to say when it has seen what follows so many times."""

SCANNED_TOKENS = 2**22
MOST_TOKENS = 32


def document_start(shards: Sequence[TokenShard], tokenizer: Tokenizer | None) -> list[int]:
    """Ids with which documents of the training data begin, at least one.

    With many documents: end of text, which stands before each. Otherwise the first line of the
    first document. A text that starts after an end of text that stood once in the data, or never,
    is noise.
    """
    tokens = np.asarray(shards[0].tokens[:SCANNED_TOKENS])
    if tokenizer is None:
        return [int(token) for token in tokens[:MOST_TOKENS]]
    eot = tokenizer.eot
    if np.count_nonzero(tokens == eot) >= MANY_DOCUMENTS:
        return [eot]
    start = [int(token) for token in tokens[tokens != eot][:MOST_TOKENS]]
    return _first_line(start, tokenizer) if start else [int(tokens[0])]


def text_prompt(
    text: str, tokenizer: Tokenizer, text_start: list[int] | None
) -> tuple[list[int], str]:
    """The ids that a text continues, and a note about where it begins if `text` is empty.

    End of text stands first, unless the training data are known to have too few of it to learn
    from. `text_start` is how their documents begin, None if that is not known.
    """
    eot = [tokenizer.eot]
    learnt = text_start is None or text_start == eot
    if text:
        return (eot if learnt else []) + [int(i) for i in tokenizer.encode(text)], ""
    if text_start is None:
        return eot, (
            "no --prompt: the text begins after end of text. The training data are not known; if "
            "their documents did not begin so, the beginning is noise."
        )
    if learnt:
        return eot, "no --prompt: the text begins as the documents of the training data do."
    return text_start, "no --prompt: the text begins with the first line of the training data."


def _first_line(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """The first line that is not blank; of a longer one, whole words."""
    pieces = [tokenizer.decode_bytes([token]) for token in ids]
    begun = False
    for count, piece in enumerate(pieces, 1):
        begun = begun or bool(piece.strip())
        if begun and b"\n" in piece:
            return ids[:count]
    blanks = [place for place, piece in enumerate(pieces) if place and piece[:1].isspace()]
    return ids[: blanks[-1]] if begun and blanks else ids
