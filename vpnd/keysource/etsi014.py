"""ETSI GS QKD 014 V1.1.1: requests, and the reading of answers. No I/O.

Clause 5 has the methods and clause 6 the data formats. What is asked for is what must come: count,
IDs, length. What does not matter may differ: docs/qkd.md lists it.
"""

from __future__ import annotations

import binascii
import json
import re
from base64 import b64decode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import quote, urlencode
from uuid import UUID

from kex.external import MAX_KEY_ID_LENGTH, MAX_NAME_LENGTH
from kex.secret import Secret
from vpnd.config_key_sources import API_PATH
from vpnd.keysource.base import SourceFault
from vpnd.keysource.http_refusal import asked, known_refusal, not_200, nothing_left
from vpnd.keysource.https_call import Answer, Request
from vpnd.keysource.json_answer import (
    JsonObject,
    is_json_or_nothing,
    json_kind,
    message_untrusted,
    object_untrusted,
    only_a_message,
    quoted_untrusted,
)
from vpnd.keysource.key_manager import BadAnswer

STATUS: Final = "status"
GET_KEY: Final = "enc_keys"
GET_KEY_WITH_IDS: Final = "dec_keys"

KEY_ID: Final = re.compile(r"[0-9a-fA-F]{8}(-?[0-9a-fA-F]{4}){3}-?[0-9a-fA-F]{12}")
"""Clause 6.3: a UUID; in either case, and let pass without its hyphens."""
ANY_KEY_ID: Final = re.compile(rf"[0-9A-Za-z_+-][0-9A-Za-z._~+-]{{0,{MAX_KEY_ID_LENGTH - 1}}}")
"""For a KME that has other IDs: nothing that ends a segment of a path, and no step of one."""

_THINGS: Final = r"\b(key|keys|pool|store|buffer|material)\b"
_LEFT: Final = r"(available|left|remain\w*|stored|in stock|exist\w*|present|have|has|had)"
_EMPTY: Final = re.compile(
    r"(\b(no|not enough|insufficient|too few|lack of|lacks|short(age)? of|running low on)"
    r"|\bout of|exhaust\w*|empty|deplet\w*|drained)"
    r"\b.{0,40}" + _THINGS + r"|" + _THINGS + r".{0,40}\b"
    r"(empty|exhaust\w*|insufficient|deplet\w*|not available|unavailable|not enough|drained"
    r"|(run|ran|running|runs)\s+(out|dry)|used up)"
    r"|\b(0|zero|none)\b.{0,20}\bkeys?\b.{0,30}\b" + _LEFT + r"\b"
    r"|\bkeys?\b.{0,30}\b" + _LEFT + r"\b\W{0,3}(is |are |: ?|= ?)?\W{0,2}(0|zero|none)\b"
    r"|\bonly\s+(0|zero)\b.{0,40}\b" + _LEFT + r"\b"
    r"|\b(more|fewer|less)\s+keys?\b.{0,20}\bthan\b.{0,40}\b(" + _LEFT + r"|requested)\b"
    r"|\bexceed\w*\b.{0,40}\b(available|stored|remaining|stock|pool)\b",
    re.IGNORECASE,
)
_UNKNOWN: Final = re.compile(
    r"not\s+found|unknown\s+key|no\s+such\s+key|not\s+exist|unknown\s+id|not\s+known"
    r"|not\s+(yet\s+)?(available|present|ready|synchroni[sz]ed)|invalid\s+key[\s_-]*id",
    re.IGNORECASE,
)


_STATUS_FIELDS: Final = frozenset(
    {
        *("source_KME_ID", "target_KME_ID", "master_SAE_ID", "slave_SAE_ID"),
        *("key_size", "max_key_size", "min_key_size", "stored_key_count", "max_key_count"),
        *("max_key_per_request", "max_SAE_ID_count", "status_extension"),
    }
)


@dataclass(frozen=True, slots=True)
class Status:
    """Clause 6.1, as far as it matters; None or "" for what did not come."""

    source_kme: str
    target_kme: str
    master_sae: str
    slave_sae: str
    key_size: int | None
    """Bits; so are the two below."""
    max_key_size: int | None
    min_key_size: int | None
    stored: int | None
    """Keys."""
    capacity: int | None
    max_per_request: int | None


@dataclass(frozen=True, slots=True)
class DeliveredKey:
    """One key of a container (clause 6.3)."""

    key_id: str
    key: Secret


def status_request(far_sae: str, *, base: str = API_PATH) -> Request:
    """Clause 5.2, get status."""
    return Request(STATUS, _path(base, far_sae, STATUS))


def get_key_request(
    slave_sae: str, *, number: int, size: int | None, post: bool, base: str = API_PATH
) -> Request:
    """Clause 5.3, get key: `size` as it stands in the request, None for the KME's own."""
    wanted: dict[str, int] = {"number": number}
    if size is not None:
        wanted["size"] = size
    path = _path(base, slave_sae, GET_KEY)
    if post:
        return Request(GET_KEY, path, json.dumps(wanted).encode())
    return Request(GET_KEY, f"{path}?{urlencode(wanted)}")


def get_key_with_ids_request(
    master_sae: str, key_ids: Sequence[str], *, post: bool, base: str = API_PATH
) -> Request:
    """Clause 5.4, get key with key IDs; one ID where it is a GET."""
    path = _path(base, master_sae, GET_KEY_WITH_IDS)
    if post:
        body = {"key_IDs": [{"key_ID": key_id} for key_id in key_ids]}
        return Request(GET_KEY_WITH_IDS, path, json.dumps(body).encode())
    (key_id,) = key_ids
    return Request(GET_KEY_WITH_IDS, f"{path}?{urlencode({'key_ID': key_id})}")


def _path(base: str, sae: str, method: str) -> str:
    return f"{base}/{quote(sae, safe='')}/{method}"


def methods_request(far_sae: str, *, base: str = API_PATH) -> Request:
    """Which methods get key has. It hands nothing out."""
    return Request("methods of enc_keys", _path(base, far_sae, GET_KEY), method="OPTIONS")


def read_methods_untrusted(answer: Answer, *, post: bool) -> str:
    """What to tell of them. Raises BadAnswer where the one that is wanted is surely not there."""
    wanted, other = ("POST", "get") if post else ("GET", "post")
    said = {one.strip().upper() for one in answer.allow.split(",")} - {""}
    if answer.status < 500 and said & {"GET", "POST"} and wanted not in said:
        raise BadAnswer(
            SourceFault.REFUSED,
            f"expected {wanted} among the methods of enc_keys; it takes {', '.join(sorted(said))}",
            f'verbs = "{other}"',
            undelivered=True,
        )
    if wanted in said:
        return f"enc_keys takes {wanted}"
    return f"not known before a key is asked for: it does not say whether enc_keys takes {wanted}"


def read_no_key_untrusted(answer: Answer, key_id: str) -> str:
    """The answer to a call by an ID that nobody has. Raises BadAnswer for one that is no answer
    to that."""
    if answer.status == 200:
        found = object_untrusted(answer)
        if isinstance(found.get("keys"), list) and found["keys"]:
            raise BadAnswer(
                SourceFault.WRONG_KEY_ID,
                f"expected no key for {key_id}, an ID that was made up; one came",
                "an error of the key manager: do not use it until that is mended",
            )
    elif (
        known := known_refusal(answer, message_untrusted(answer), base=API_PATH)
    ) is not None and (known[0] is not SourceFault.UNAVAILABLE):
        _check_success(answer, by_id=True)
    return f"{answer.asked.partition(' ')[0]} of dec_keys is taken (status {answer.status})"


def read_any_answer_untrusted(answer: Answer) -> str:
    """What an answer that is of no matter proves."""
    return f"HTTP answers (status {answer.status})"


def read_status_untrusted(answer: Answer) -> Status:
    """Raises BadAnswer. A field that is missing, null or of another type is as if it were not
    there: nothing but our messages depends on most of them."""
    _check_success(answer, hands_out=False)
    found = object_untrusted(answer)
    if not _STATUS_FIELDS & set(found) and (said := only_a_message(found)):
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f"expected a status; an object without any field of one came{said}",
            _HINTS[SourceFault.REFUSED],
            undelivered=True,
        )
    return Status(
        source_kme=_name(found, "source_KME_ID"),
        target_kme=_name(found, "target_KME_ID"),
        master_sae=_name(found, "master_SAE_ID"),
        slave_sae=_name(found, "slave_SAE_ID"),
        key_size=_count(found, "key_size"),
        max_key_size=_count(found, "max_key_size"),
        min_key_size=_count(found, "min_key_size"),
        stored=_count(found, "stored_key_count"),
        capacity=_count(found, "max_key_count"),
        max_per_request=_count(found, "max_key_per_request"),
    )


def read_keys_untrusted(
    answer: Answer,
    *,
    number: int,
    length: int,
    wanted: Sequence[str] | None = None,
    form: re.Pattern[str] = KEY_ID,
) -> list[DeliveredKey]:
    """`number` different keys of `length` bytes each, with IDs of this form; those with the IDs in
    `wanted`, in that order. Raises BadAnswer."""
    _check_success(answer, by_id=wanted is not None)
    keys = _container(answer, by_id=wanted is not None)
    ids = [_key_id(one, form) for one in keys]
    if len({same_id(key_id) for key_id in ids}) < len(ids):
        raise BadAnswer(SourceFault.WRONG_KEY_ID, "expected different keys; one ID came twice")
    if len(keys) != number:
        raise BadAnswer(
            SourceFault.BAD_ANSWER, f"expected {_keys(number)}; {_keys(len(keys))} came"
        )
    if wanted is not None:
        ids = _as_wanted(ids, wanted)
    found = {same_id(_key_id(one, form)): Secret(_key_bytes(one, length)) for one in keys}
    return [DeliveredKey(key_id, found[same_id(key_id)]) for key_id in ids]


def same_id(key_id: str) -> str:
    """What two spellings of an ID have in common: a UUID is written in either case."""
    try:
        return str(UUID(key_id))
    except ValueError:
        return key_id


def _as_wanted(ids: Sequence[str], wanted: Sequence[str]) -> list[str]:
    if {same_id(key_id) for key_id in ids} != {same_id(key_id) for key_id in wanted}:
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f"expected key {_listed(wanted)}; key {_listed(ids)} came",
            "an error of the key manager: it must give what it is asked for",
        )
    return list(wanted)


def _listed(ids: Sequence[str]) -> str:
    return ", ".join(quoted_untrusted(key_id) for key_id in ids)


def _keys(number: int) -> str:
    return "one key" if number == 1 else f"{number} keys"


def _container(answer: Answer, *, by_id: bool) -> list[JsonObject]:
    found = object_untrusted(answer)
    keys = found.get("keys")
    if not isinstance(keys, list):
        came = json_kind(keys) if "keys" in found else "none"
        said = "" if "keys" in found else only_a_message(found)
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f'expected an array "keys"; {came} came{said}',
            _HINTS[SourceFault.REFUSED] if said else "",
        )
    if not keys:
        fault = SourceFault.UNKNOWN_KEY if by_id else SourceFault.EMPTY
        raise BadAnswer(
            fault, "expected a key; an array without keys came", _HINTS[fault], undelivered=True
        )
    for one in keys:
        if not isinstance(one, dict):
            raise BadAnswer(
                SourceFault.BAD_ANSWER, f'expected objects in "keys"; {json_kind(one)} came'
            )
    return keys


def _key_id(one: JsonObject, form: re.Pattern[str]) -> str:
    key_id = one.get("key_ID")
    if not isinstance(key_id, str) or not key_id:
        came = json_kind(key_id) if key_id != "" else "an empty one"
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f'expected a "key_ID" with each key; {came if "key_ID" in one else "none"} came',
        )
    if not form.fullmatch(key_id):
        expected = "a UUID" if form is KEY_ID else "1 to 300 letters, digits and -._~+"
        raise BadAnswer(
            SourceFault.WRONG_KEY_ID,
            f"expected {expected} as key_ID; a text of {len(key_id)} characters came that is none",
            "clause 6.3 has UUIDs, 8-4-4-4-12 hexadecimal digits; for a key manager with IDs of "
            'another kind: quirks = ["other-key-ids"], at both ends',
        )
    return key_id


def _key_bytes(one: JsonObject, length: int) -> bytes:
    text = one.get("key")
    if not isinstance(text, str):
        came = json_kind(text) if "key" in one else "none"
        raise BadAnswer(SourceFault.BAD_KEY, f'expected a string "key" in Base64; {came} came')
    try:
        # Both alphabets of RFC 4648, with or without the padding: none can be taken for another
        plain = text.rstrip("=").replace("-", "+").replace("_", "/")
        key = b64decode(plain + "=" * (-len(plain) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise BadAnswer(
            SourceFault.BAD_KEY,
            f"expected a key in Base64; {len(text)} characters came that are none",
        ) from None
    if len(key) != length:
        raise BadAnswer(
            SourceFault.BAD_KEY,
            f"expected a key of {length * 8} bits; one of {len(key) * 8} bits came",
            _length_hint(len(key), length),
        )
    if not key.strip(key[:1]):
        raise BadAnswer(
            SourceFault.BAD_KEY,
            "expected a random key; one byte over and over came",
            "an error of the key manager: do not use it until that is mended",
        )
    return key


def _length_hint(came: int, expected: int) -> str:
    if came == expected * 8:
        return 'it seems to take `size` for bytes: quirks = ["size-in-bytes"]'
    return "set key_size to what it gives, at both ends"


def _name(found: JsonObject, key: str) -> str:
    value = found.get(key)
    if not isinstance(value, str):
        return ""
    # It goes over the wire as a name of at most 64 bytes
    kept = "".join(c for c in value if c.isprintable()).encode()[:MAX_NAME_LENGTH]
    return kept.decode(errors="ignore")


def _count(found: JsonObject, key: str) -> int | None:
    value: Any = found.get(key)
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) < 16:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        return None
    return value


_HINTS: Final[dict[SourceFault, str]] = {
    SourceFault.UNAUTHORIZED: "is this end's certificate (or bearer_token) registered there, under "
    "`sae`; and may it have keys with this far end?",
    SourceFault.EMPTY: "the QKD link makes keys more slowly than they are used: docs/qkd.md, "
    "capacity planning",
    SourceFault.UNAVAILABLE: "it is tried again by itself; its own log says more",
    SourceFault.UNKNOWN_KEY: "not synchronised yet, fetched by somebody else, or are the SAE IDs "
    "exchanged?",
    SourceFault.REFUSED: "do `sae` and `peer_sae` have the names that it knows, and does it give "
    "keys of key_size bits?",
}


def _check_success(answer: Answer, *, by_id: bool = False, hands_out: bool = True) -> None:
    """Raise BadAnswer for any HTTP status but 200. `hands_out`: whether the call gives keys."""
    status = answer.status
    if status == 200:
        return
    other = not_200(answer)
    if other is not None:
        raise other
    message = message_untrusted(answer)
    known = known_refusal(answer, message, base=API_PATH)
    fault = _fault_of(answer, message, by_id=by_id) if known is None else known[0]
    raise BadAnswer(
        fault,
        f"expected status 200; {status} came{asked(answer)} with {message}",
        _HINTS[fault] if known is None else known[1],
        undelivered=not hands_out or nothing_left(status),
    )


def _fault_of(answer: Answer, message: str, *, by_id: bool) -> SourceFault:
    match answer.status:
        case 401 | 403 | 407:
            return SourceFault.UNAUTHORIZED
        case 400 | 404 | 409 | 410 | 422 if by_id and is_json_or_nothing(answer):
            if _UNKNOWN.search(message) or (answer.status in (404, 410)):
                return SourceFault.UNKNOWN_KEY
        case 400 | 404 | 409 | 422 | 503 if not by_id and _EMPTY.search(message):
            return SourceFault.EMPTY
    return SourceFault.UNAVAILABLE if answer.status in (429, 503) else SourceFault.REFUSED
