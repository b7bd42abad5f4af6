"""A data set from a person's own texts: what was found in them, what is held out, the tokens."""

import contextlib
import hashlib
import json
import sys
import tempfile
from pathlib import Path
from typing import IO

from cupygpt.console.work_bar import WorkBar
from cupygpt.data.token_record import Origin
from cupygpt.data.tokenizer import Tokenizer
from cupygpt.device.cpu_threads import num_cores
from cupygpt.errors import DataError
from cupygpt.files import os_errors_name
from cupygpt.texts.find_input import Note, find_input, note_files
from cupygpt.texts.hold_out import choose_hold_out, hold_out_files
from cupygpt.texts.look import FileList, Look, kept_pieces, look_at
from cupygpt.texts.own_vocabulary import TrainingText
from cupygpt.texts.reading.documents import SEPARATOR, STDIN_NAME, Documents
from cupygpt.texts.reading.find import STDIN
from cupygpt.texts.reading.reading import Reading, Tally
from cupygpt.texts.request import VAL_FRACTION, Request
from cupygpt.texts.writing.encode_blocks import BLOCK_CHARACTERS, MOST_WORKERS
from cupygpt.texts.writing.journal import Journal
from cupygpt.texts.writing.shard_writer import ShardSeries, remove_partial
from cupygpt.texts.writing.write_tokens import Split, write_tokens

SPOOL_BLOCK_BYTES = 2**20
MANY_FILES = 1000
"""The number of so many files is said before they are read."""


class OwnTexts:
    """The texts that a request names, after a first look at all of them.

    A context manager, because standard input is kept in a temporary file. `origin` says where the
    tokens come from.
    """

    def __init__(self, request: Request, note: Note, bar: WorkBar) -> None:
        self._request, self._note, self._bar = request, note, bar
        self._open = contextlib.ExitStack()

    def __enter__(self) -> "OwnTexts":
        with self._open:
            self._read()
            self._open = self._open.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        self._open.close()

    def training_text(self) -> TrainingText:
        """The text from which a vocabulary is learnt."""
        kept = kept_pieces(self.documents, self.look, self.hold_out)
        pieces = (piece for piece, is_held_out in kept if not is_held_out)
        ends = 0.0 if self.hold_out.whole else self.hold_out.fraction
        return TrainingText(pieces, self.look.sizes.text_bytes, ends)

    def write(
        self, tokenizer: Tokenizer, train: ShardSeries, val: ShardSeries, journal: Journal
    ) -> None:
        """Write all tokens; the `journal` says how far that came if it is interrupted."""
        request = self._request
        split = Split(train, val, self.hold_out, tokenizer.eot, journal.remove)
        state = journal.load()
        if state is not None and not split.restore(state):
            state = None
        if state is None:
            journal.remove()
            remove_partial(request.output, request.file_prefix)
        else:
            percent = 100 * state["position"] // max(1, self.documents.total_bytes)
            self._note(f"going on where an earlier run was stopped, at {percent} % of the text")
        workers = request.workers or min(num_cores(), MOST_WORKERS)
        with self._bar.stage("writing tokens", self.documents.total_bytes) as show:
            write_tokens(
                self.documents,
                self.look,
                self.hold_out,
                tokenizer,
                split,
                journal,
                workers=workers,
                going_on=state,
                show=show,
            )

    def journal(self, tokenizer: Tokenizer) -> Journal:
        """Where the state of writing these texts with a tokenizer is kept."""
        values = [
            self.look.sha256,
            self.look.sizes.documents,
            self.look.sizes.text_bytes,
            self.hold_out.words,
            self.hold_out.fraction,
            tokenizer.sha256,
            self._request.shard_tokens,
            BLOCK_CHARACTERS,
        ]
        key = hashlib.sha256(json.dumps(values).encode()).hexdigest()
        return Journal(self._request.output, self._request.file_prefix, key)

    def _read(self) -> None:
        request, note = self._request, self._note
        found = find_input(request, note)
        stdin = self._spooled_stdin() if STDIN in found.files else None
        how = Reading(request.field, request.split_at_endoftext, request.errors == "replace")
        self.documents = Documents(found.files, how, stdin)
        if len(found.files) >= MANY_FILES:
            note(f"{len(found.files):,} files, {self.documents.total_bytes:,} bytes")
        fraction = VAL_FRACTION if request.val_fraction is None else request.val_fraction
        val_files = found.for_validation
        spool = request.output if request.dedup else None
        with self._bar.stage("reading", self.documents.total_bytes) as show:
            self.look = look_at(
                self.documents,
                0.0 if val_files else fraction,
                for_validation=val_files,
                spool=spool,
                show=show,
            )
        if not self.look.marks:
            first = STDIN_NAME if found.files[0] == STDIN else found.files[0]
            what = "the file is empty" if len(found.files) == 1 else "all files are empty"
            raise DataError(f"{first}: {what}. Give files with text.")
        _note_contents(self.look, self.documents.tally, request, note)
        if val_files:
            self.hold_out = hold_out_files(sorted(Path(file).name for file in val_files))
        else:
            method = request.hold_out or "auto"
            self.hold_out = choose_hold_out(self.look.sizes, fraction, method)
        note(f"held out for validation: {self.hold_out.words} ({self.hold_out.reason})")
        self.origin = Origin(
            [STDIN_NAME if name == STDIN else Path(name).name for name in self.look.files.names],
            self.look.files.count,
            self.look.sha256,
            self.hold_out.words,
        )

    def _spooled_stdin(self) -> IO[bytes]:
        """Standard input, copied into a temporary file, because it is read twice."""
        folder = self._request.output
        if sys.stdin is None:  # closed by whoever started this process (<&-)
            raise DataError(f"{STDIN_NAME} is closed. Give text through a pipe, or name files.")
        if sys.stdin.isatty():
            self._note("reading text from the terminal; Ctrl-D ends it")
        with os_errors_name(folder / f"({STDIN_NAME})"):
            spool = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed with the others)
            self._open.enter_context(spool)
            with self._bar.stage(f"copying {STDIN_NAME}") as show:
                while block := sys.stdin.buffer.read(SPOOL_BLOCK_BYTES):
                    spool.write(block)
                    show(spool.tell())
            spool.flush()
        self._note(f"{STDIN_NAME}: {spool.tell():,} bytes, kept in {folder} while it is read")
        spool.seek(0)
        if self._request.field is None and spool.readline(SPOOL_BLOCK_BYTES).startswith(b'{"'):
            self._note(
                f"{STDIN_NAME} looks like JSON lines, and is read as text; --field NAME takes the "
                f"text from a field of each record"
            )
        return spool


def _note_contents(look: Look, tally: Tally, request: Request, note: Note) -> None:
    """Say what the user may not know of the texts."""
    sizes = look.sizes
    note(
        f"{_counted(sizes.documents, 'document')} in {_counted(look.files.count, 'file')}, "
        f"{sizes.text_bytes:,} bytes of text"
    )
    if tally.fields and request.field is None:
        note(f"the text is in the field {', '.join(map(repr, tally.fields))}")
    if request.field is not None and not tally.fields:
        note(f"--field {request.field} was not needed: none of the files holds records")
    ends = "became a line feed" if tally.line_ends == 1 else "became line feeds"
    changes = [f"{_counted(tally.line_ends, 'Windows line end')} {ends}"] if tally.line_ends else []
    marks = ", ".join(f"{encoding} of {n:,}" for encoding, n in tally.marks.items())
    changes += [f"byte order marks were left out ({marks})"] if marks else []
    if changes:
        note("; ".join(changes))
    if tally.replaced:
        note(
            f"{_counted(tally.replaced, 'byte')} that {_are(tally.replaced)} no text became U+FFFD"
        )
    note_files(
        note,
        FileList.of(tally.nul),
        "with NUL characters, which text does not have; UTF-16 without a byte order mark looks so "
        "(iconv -f UTF-16LE -t UTF-8 converts it)",
    )
    note_files(note, look.empty, "without text, and left out")
    if tally.empty:
        note(f"{_counted(tally.empty, 'document')} without any visible character left out")
    if request.dedup:
        note(f"{_counted(look.dropped, 'document')} equal to an earlier one dropped")
    else:
        note_files(note, look.again, "with the content of another file, which so counts twice")
    times = _counted(tally.endoftexts, "time")
    if request.split_at_endoftext:
        note(f"the text {SEPARATOR} occurs {times}, and separates documents")
    elif tally.endoftexts:
        note(
            f"the text {SEPARATOR} occurs {times}, and is learnt like any other "
            f"text; if it separates documents, pass --split-at-endoftext"
        )


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'s' * (count != 1)}"


def _are(count: int) -> str:
    return "is" if count == 1 else "are"
