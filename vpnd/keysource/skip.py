"""draft-cisco-skip: requests, and the reading of answers. No I/O. All of it is GET."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import quote, urlencode

from kex.external import MAX_KEY_ID_LENGTH, MAX_NAME_LENGTH
from kex.secret import Secret
from vpnd.keysource.base import SourceFault
from vpnd.keysource.etsi014 import DeliveredKey
from vpnd.keysource.http_refusal import asked, known_refusal, not_200, nothing_left
from vpnd.keysource.https_call import Answer, Request
from vpnd.keysource.json_answer import (
    json_kind,
    message_untrusted,
    object_untrusted,
    only_a_message,
)
from vpnd.keysource.key_manager import BadAnswer

_HEX: Final = re.compile(r"[0-9A-Fa-f]+")
KEY_ID: Final = re.compile(rf"[0-9A-Fa-f]{{1,{MAX_KEY_ID_LENGTH}}}")
MAX_REMOTE_SYSTEMS: Final = 4096


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a key provider says of itself."""

    gives_keys: bool
    local_system_id: str
    remote_system_ids: tuple[str, ...]
    """Globs."""
    algorithm: str


def capabilities_request() -> Request:
    return Request("capabilities", "/capabilities")


def key_request(remote_system: str, *, bits: int) -> Request:
    query = {"remoteSystemID": remote_system, "size": str(bits)}
    return Request("key", f"/key?{urlencode(query)}")


def key_by_id_request(remote_system: str, key_id: str) -> Request:
    query = urlencode({"remoteSystemID": remote_system})
    return Request("key by ID", f"/key/{quote(key_id, safe='')}?{query}")


def matches_glob(glob: str, name: str) -> bool:
    """Whether a name is one of those that a glob means: * any characters, ? one; case counts."""
    # Not fnmatch: brackets have no meaning in the draft. Linear, for globs come from outside, too
    position = glob_position = 0
    star = mark = -1
    while position < len(name):
        here = glob[glob_position : glob_position + 1]
        if here == "*":
            star, mark = glob_position, position
            glob_position += 1
        elif here and here in ("?", name[position]):
            position += 1
            glob_position += 1
        elif star >= 0:
            mark += 1
            position, glob_position = mark, star + 1
        else:
            return False
    return not glob[glob_position:].strip("*")


def read_capabilities_untrusted(answer: Answer) -> Capabilities:
    """Raises BadAnswer."""
    _check_success(answer, by_id=False, hands_out=False)
    found = object_untrusted(answer)
    local = found.get("localSystemID")
    if not isinstance(local, str) or not 0 < len(local.encode()) <= MAX_NAME_LENGTH:
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f'expected a "localSystemID" of 1 to {MAX_NAME_LENGTH} bytes; '
            f"{json_kind(local) if 'localSystemID' in found else 'none'} came"
            f"{'' if 'localSystemID' in found else only_a_message(found)}",
        )
    remote = found.get("remoteSystemID")
    remote = [remote] if isinstance(remote, str) else remote
    if not isinstance(remote, list) or not all(isinstance(one, str) for one in remote):
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f'expected an array of strings "remoteSystemID"; {json_kind(remote)} came',
        )
    if not local.isprintable():
        raise BadAnswer(
            SourceFault.BAD_ANSWER, 'expected a printable "localSystemID"; another came'
        )
    return Capabilities(
        gives_keys=found.get("key") is not False,
        local_system_id=local,
        remote_system_ids=tuple(one[:256] for one in remote[:MAX_REMOTE_SYSTEMS]),
        algorithm=str(found.get("algorithm", ""))[:64],
    )


def read_key_untrusted(answer: Answer, *, length: int, wanted: str | None = None) -> DeliveredKey:
    """A key of `length` bytes; the one with the ID `wanted`. Raises BadAnswer."""
    _check_success(answer, by_id=wanted is not None)
    found = object_untrusted(answer)
    key_id = found.get("keyId")
    if not found.keys() & {"keyId", "key"} and (said := only_a_message(found)):
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f'expected a "keyId" and a "key"; neither came{said}',
            _HINTS[SourceFault.REFUSED],
        )
    if not isinstance(key_id, str) or not _HEX.fullmatch(key_id):
        came = json_kind(key_id) if "keyId" in found else "none"
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f'expected hexadecimal digits as "keyId"; {came} came that is none',
        )
    if len(key_id) > MAX_KEY_ID_LENGTH:
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f"expected a keyId of at most {MAX_KEY_ID_LENGTH} digits; one of {len(key_id)} came",
        )
    if wanted is not None and key_id.lower() != wanted.lower():
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f"expected key {wanted}; another came",  # not quoted: it may stand in the wrong field
            "an error of the key provider: it must give what it is asked for",
        )
    text = found.get("key")
    if not isinstance(text, str) or not _HEX.fullmatch(text) or len(text) % 2:
        came = json_kind(text) if "key" in found else "none"
        raise BadAnswer(
            SourceFault.BAD_KEY, f'expected hexadecimal digits as "key"; {came} came that is none'
        )
    key = bytes.fromhex(text)
    if len(key) != length:
        raise BadAnswer(
            SourceFault.BAD_KEY,
            f"expected a key of {length * 8} bits; one of {len(key) * 8} bits came",
            "set key_size to what it gives, at both ends",
        )
    if not key.strip(key[:1]):
        raise BadAnswer(SourceFault.BAD_KEY, "expected a random key; one byte over and over came")
    return DeliveredKey(wanted or key_id, Secret(key))


_HINTS: Final[dict[SourceFault, str]] = {
    SourceFault.UNAUTHORIZED: "is this end's certificate registered there?",
    SourceFault.UNAVAILABLE: "it is tried again by itself; its own log says more",
    SourceFault.UNKNOWN_KEY: "not synchronised yet, fetched by somebody else, or are the system "
    "IDs exchanged?",
    SourceFault.REFUSED: "does it serve the system ID in peer_sae, and keys of key_size bits?",
}


def _check_success(answer: Answer, *, by_id: bool, hands_out: bool = True) -> None:
    """Raise BadAnswer for any HTTP status but 200. `hands_out`: whether the call gives keys."""
    status = answer.status
    if status == 200:
        return
    other = not_200(answer)
    if other is not None:
        raise other
    message = message_untrusted(answer)
    known = known_refusal(answer, message)
    match status:
        case _ if known is not None:
            fault = known[0]
        case 401 | 403 | 407:
            fault = SourceFault.UNAUTHORIZED
        case 400 | 404 if by_id:
            # What was asked is well formed: what is left is an ID that it does not know
            fault = SourceFault.UNKNOWN_KEY
        case 429 | 503:
            fault = SourceFault.UNAVAILABLE
        case _:
            fault = SourceFault.REFUSED
    raise BadAnswer(
        fault,
        f"expected status 200; {status} came{asked(answer)} with {message}",
        _HINTS[fault] if known is None else known[1],
        undelivered=not hands_out or nothing_left(status),
    )
