"""Both ends of a connection prove the run's key before rank 0 accepts it as a rank's.

Whoever can reach the port of rank 0 can connect to it: a port scanner, another run, another user.
So each side sends random bytes, and answers with the HMAC-SHA256 of both sides' bytes under the key
(`RankInfo.key`). The key itself is never sent, and an answer is worthless on another connection.

    another rank                               rank 0
    greeting, nonce                   ->
                                      <-       nonce, proof
    kind, rank, world, host, version, proof ->

What this does not do:

- Rank 0 proves the key first, to whoever connects. The receiver of that proof can try guesses of
  the key, without asking again. A key that is set by hand should be a long random text.
- Later messages are neither encrypted nor signed: the network between the hosts must be one whose
  routers and administrators you trust.
"""

import hmac
import json
import secrets
from dataclasses import asdict, dataclass, fields
from typing import Any

from cupygpt.distributed.launcher_env import KEY
from cupygpt.distributed.messages import Closed, MessageSocket

GREETING = "cupygpt ranks, protocol 2"
MAX_BYTES = 4096
"""No message of a handshake is longer: an unknown sender cannot fill the memory."""

KINDS = ("control", "watch")
"""Every other rank keeps two connections to rank 0: `control` carries messages in the order of the
program, and on `watch` the watchdogs listen all the time."""


@dataclass(frozen=True)
class Identity:
    """What a rank says about itself, and which of its two connections (KINDS) this is."""

    kind: str
    rank: int
    world: int
    host: str
    version: str


def introduce(connection: MessageSocket, key: str, identity: Identity, timeout_s: float) -> None:
    """Prove to rank 0 that this process has the key, and send it the `identity` of this rank.

    Raises Closed if the other side does not prove the same, and TimeoutError if it does not answer
    within `timeout_s`.
    """
    own_nonce = secrets.token_hex()
    connection.send({"greeting": GREETING, "nonce": own_nonce})
    answer = _with_fields(connection.receive(timeout_s, MAX_BYTES), nonce=str, proof=str)
    nonces = [own_nonce, answer["nonce"]]
    if not _is_equal(answer["proof"], _proof(key, "rank 0", nonces)):
        raise Closed(
            "the process that listens there has another key: it belongs to another run, or its "
            f"{KEY} is another one"
        )
    said = asdict(identity)
    connection.send({**said, "proof": _proof(key, "another rank", [*nonces, said])})


class Guest:
    """Rank 0's side of a handshake: a connection of which it does not know yet whose it is."""

    def __init__(self, connection: MessageSocket, key: str) -> None:
        self.connection = connection
        self._key = key
        self._nonces: list[str] | None = None  # both sides', when rank 0 has answered

    def hear(self) -> Identity | None:
        """Take what has arrived, and wait for nothing. The identity once it is proved, else None.

        Raises Closed as soon as it is known that this is no rank of this run.
        """
        try:
            message = self.connection.receive(0.0, MAX_BYTES)
        except TimeoutError:
            return None
        if self._nonces is None:
            self._answer(message)
            return None
        types = {field.name: field.type for field in fields(Identity)}
        said = _with_fields(message, **types, proof=str)  # type: ignore[arg-type]
        proof = said.pop("proof")
        if not _is_equal(proof, _proof(self._key, "another rank", [*self._nonces, said])):
            raise Closed("the other side does not know the key")
        if said["kind"] not in KINDS:
            raise Closed("the other side speaks another protocol")
        return Identity(**said)

    def _answer(self, message: Any) -> None:
        """Prove the key in answer to a greeting."""
        hello = _with_fields(message, greeting=str, nonce=str)
        if hello["greeting"] != GREETING:
            raise Closed("the other side speaks another protocol")
        self._nonces = [hello["nonce"], secrets.token_hex()]
        proof = _proof(self._key, "rank 0", self._nonces)
        self.connection.send({"nonce": self._nonces[1], "proof": proof})


def _with_fields(message: Any, **types: type) -> dict[str, Any]:
    """The message, if it has exactly these fields, of exactly these types. Raises Closed if not.

    A field of one of these types has no other values inside, so that nothing of what a stranger
    sends can be nested deeply.
    """
    if not isinstance(message, dict) or message.keys() != types.keys():
        raise Closed("the other side speaks another protocol")
    if any(type(message[name]) is not wanted for name, wanted in types.items()):
        raise Closed("the other side speaks another protocol")
    return message


def _proof(key: str, sender: str, seen: list[Any]) -> str:
    """HMAC of what both sides have `seen`; `sender` makes the proofs of the two sides differ."""
    text = json.dumps([GREETING, sender, seen], sort_keys=True)
    return hmac.new(key.encode(errors="surrogateescape"), text.encode(), "sha256").hexdigest()


def _is_equal(proof: str, wanted: str) -> bool:
    return proof.isascii() and hmac.compare_digest(proof, wanted)
