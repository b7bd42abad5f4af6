"""Both ends of a connection prove the run's key before rank 0 accepts it as a rank's.

Whoever can reach the port of rank 0 can connect to it: a port scanner, another run, another user.
So each side sends random bytes, and answers with the HMAC-SHA256 of both sides' bytes under the key
(`RankInfo.key`). The key itself is never sent, and an answer is worthless on another connection.

What this does not do:

- Rank 0 proves the key first, to whoever connects. The receiver of that proof can try guesses of
  the key, without asking again. A key that is set by hand should be a long random text.
- A stranger who connects and then says nothing delays the start of the run, by up to 5 s for each
  connection (HANDSHAKE_S in rendezvous.py).
- Later messages are neither encrypted nor signed: the network between the hosts must be one whose
  routers and administrators you trust.
"""

import hmac
import json
import secrets
import time
from typing import Any

from cupygpt.distributed.launcher_env import KEY
from cupygpt.distributed.messages import Closed, MessageSocket

GREETING = "cupygpt ranks, protocol 2"
MAX_BYTES = 4096
"""No message of a handshake is longer: an unknown sender cannot fill the memory."""


def introduce(
    connection: MessageSocket, key: str, identity: dict[str, Any], timeout_s: float
) -> None:
    """Prove to rank 0 that this process has the key, and send it the `identity` of this rank.

    Raises Closed if the other side does not prove the same, and TimeoutError if it does not answer
    within `timeout_s`.
    """
    own_nonce = secrets.token_hex()
    connection.send({"greeting": GREETING, "nonce": own_nonce})
    answer = _receive(connection, timeout_s)
    nonces = [own_nonce, answer.get("nonce")]
    if not _is_equal(answer.get("proof"), _proof(key, "rank 0", nonces)):
        raise Closed(
            "the process that listens there has another key: it belongs to another run, or its "
            f"{KEY} is another one"
        )
    connection.send({**identity, "proof": _proof(key, "another rank", [*nonces, identity])})


def identify(connection: MessageSocket, key: str, timeout_s: float) -> dict[str, Any] | None:
    """The identity that the other side sends to rank 0, or None if it does not prove the key.

    Returns within `timeout_s`, whatever the other side sends or does not send.
    """
    deadline = time.monotonic() + timeout_s
    try:
        hello = _receive(connection, timeout_s)
        if hello.get("greeting") != GREETING:
            return None
        nonces = [hello.get("nonce"), secrets.token_hex()]
        connection.send({"nonce": nonces[1], "proof": _proof(key, "rank 0", nonces)})
        identity = _receive(connection, deadline - time.monotonic())
        proof = identity.pop("proof", None)
        wanted = _proof(key, "another rank", [*nonces, identity])
        return identity if _is_equal(proof, wanted) else None
    except OSError:
        return None


def _receive(connection: MessageSocket, timeout_s: float) -> dict[str, Any]:
    try:
        message = connection.receive(timeout_s, MAX_BYTES)
    except (ValueError, RecursionError):  # not JSON, or JSON nested too deeply
        message = None
    if not isinstance(message, dict):
        raise Closed("the other side speaks another protocol")
    return message


def _proof(key: str, sender: str, seen: list[Any]) -> str:
    """HMAC of what both sides have `seen`; `sender` makes the proofs of the two sides differ."""
    text = json.dumps([GREETING, sender, seen], sort_keys=True)
    return hmac.new(key.encode(errors="surrogateescape"), text.encode(), "sha256").hexdigest()


def _is_equal(proof: Any, wanted: str) -> bool:
    return isinstance(proof, str) and proof.isascii() and hmac.compare_digest(proof, wanted)
