"""The second pass over documents: their tokens, written to the training and validation files."""

from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np

from cupygpt.console.work_bar import Show
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.texts.hold_out import HoldOut
from cupygpt.texts.look import Look, kept_pieces
from cupygpt.texts.reading.documents import Documents
from cupygpt.texts.writing.encode_blocks import EncodedBlock, Ids, blocks, encoded
from cupygpt.texts.writing.journal import Journal, State
from cupygpt.texts.writing.shard_writer import ShardSeries

SAVE_EVERY_BYTES = 2**28
"""So many bytes of the input lie between two states that writing can go on from."""


class Split:
    """Sends tokens to the two series, documents whole or with their ends to `val`.

    `forget` is called when the last `state` no longer holds: it was taken inside a document whose
    end now goes to `val`.
    """

    def __init__(
        self,
        train: ShardSeries,
        val: ShardSeries,
        hold_out: HoldOut,
        eot: int,
        forget: Callable[[], None],
    ) -> None:
        self._train, self._val, self._hold_out, self._forget = train, val, hold_out, forget
        self._eot = np.array([eot])
        self._owed = 0.0  # tokens due to validation, with the fraction left from earlier documents
        self._open = 0  # tokens written of a document that has not ended, with end of text
        self._state_inside = False  # whether the last state was taken in this document

    def add(self, block: EncodedBlock) -> None:
        """Write the next block."""
        if self._hold_out.whole or self._hold_out.fraction == 0:
            (self._val if block.held_out else self._train).write(block.ids, block.ends)
            return
        at = 0
        for end in block.ends.tolist():
            self._end_document(block.ids[at:end])
            at = end
        rest = block.ids[at:]
        self._train.write(rest)
        self._open += rest.size

    def state(self) -> State:
        """What must be known to go on, when all that was written is on the disk."""
        self._state_inside = self._open > 0
        return {
            "owed": self._owed,
            "open": self._open,
            "train": self._train.state(),
            "val": self._val.state(),
        }

    def restore(self, state: State) -> bool:
        """Go on where `state` was taken; False if the files for it are not there."""
        self._owed, self._open = state["owed"], state["open"]
        self._state_inside = self._open > 0
        return self._train.restore(state["train"]) and self._val.restore(state["val"])

    def _end_document(self, ids: Ids) -> None:
        """`ids` end a document; its last tokens go to validation, those written before too."""
        length = self._open + ids.size - 1
        owed = self._owed + self._hold_out.fraction * length
        count = min(int(owed), length)
        self._owed = owed - count
        of_ids = min(count, ids.size - (self._open == 0))
        if self._state_inside:
            self._forget()
            self._state_inside = False
        kept = ids[: ids.size - of_ids]
        if count:
            self._val.write(self._eot)
            for older in self._train.take_back(count - of_ids) if count > of_ids else ():
                self._val.write(older)
            self._val.write(ids[ids.size - of_ids :])
        if count < length:
            self._train.write(kept, [kept.size] if kept.size else [])
            self._train.end_document()
        elif self._open:
            for _ in self._train.take_back(1):  # end of text alone is no document
                pass
        self._open = 0


def write_tokens(
    documents: Documents,
    look: Look,
    hold_out: HoldOut,
    tokenizer: Tokenizer,
    split: Split,
    journal: Journal,
    *,
    workers: int,
    going_on: State | None,
    show: Show,
) -> None:
    """Encode all documents and write them; `show` is told how many bytes of the files were read.

    From time to time the `journal` gets a state; `going_on` is the one that `split` was restored
    to, and what lies before it is read, but not encoded again.
    """
    done = 0 if going_on is None else int(going_on["blocks"])
    saved_at = 0 if going_on is None else int(going_on["position"])
    all_blocks = blocks(kept_pieces(documents, look, hold_out))
    for _ in islice(all_blocks, done):
        show(documents.position, new=False)
    for block in encoded(all_blocks, tokenizer, workers):
        split.add(block)
        done += 1
        show(documents.position)
        if documents.position - saved_at >= SAVE_EVERY_BYTES:
            saved_at = documents.position
            state: dict[str, Any] = {**split.state(), "blocks": done, "position": saved_at}
            journal.save(state)
