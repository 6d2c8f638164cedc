"""What a key manager is told to do wrong: the list, and which call is next to suffer."""

from __future__ import annotations

import copy
import itertools
import json
import math
import uuid
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from vpnd_lab.kme.material import entries
from vpnd_lab.kme.wire import Answer

CALLS = ("status", "enc_keys", "dec_keys", "capabilities", "key", "key_by_id", "entropy")
"""The kinds of call: those of ETSI GS QKD 014, then those of SKIP."""

BODIES = ("json", "html", "empty", "fields", "certificate")
_ABOUT_A_CERTIFICATE = (
    b"<html>\r\n<head><title>400 The SSL certificate error</title></head>\r\n<body>\r\n"
    b"<center><h1>400 Bad Request</h1></center>\r\n<center>The SSL certificate error</center>\r\n"
    b"</body>\r\n</html>\r\n"
)
_HTML = (
    b"<!DOCTYPE html>\n<html><head><title>Error</title></head><body><h1>Error</h1></body></html>\n"
)
_HUNDRED_MB = 100_000_000

# What each fault is, for people; and the arguments it takes.
KINDS: Mapping[str, str] = {
    "status": "answers with HTTP `status` (503) and a `body` (json, html, empty; fields: a list of "
    "what is wrong, as FastAPI has it; certificate: a proxy's page about ours); does nothing",
    "message-only": "answers with HTTP 200 and a message alone; does nothing",
    "no-post": "takes no POST (405); does nothing",
    "pool-empty": "answers as if there were no key left",
    "slow": "waits `seconds` (5) before it does anything",
    "silent": "does what is asked and never answers; the connection stays open",
    "answer-lost": "does what is asked, then closes the connection instead of answering",
    "json-cut": "the JSON ends in the middle, in an answer that is complete as HTTP",
    "connection-cut": "the connection is closed in the middle of the answer",
    "wrong-shape": "an array where an object is meant",
    "nulls": "null for every value",
    "unknown-fields": "fields that nobody knows, which do no harm",
    "huge": "`size` bytes (100 MB) of JSON, without a length in advance",
    "drip": "`rate` bytes (1) a second",
    "keys-none": "an empty list of keys",
    "keys-extra": "one key more than asked for",
    "key-short": "a key one byte too short",
    "key-long": "a key one byte too long",
    "key-not-encoded": "a key that is not base64 (SKIP: not hexadecimal)",
    "id-missing": "a key without an ID",
    "id-doubled": "the same ID, and key, twice",
    "id-other": "a key under another ID than the one asked for or registered",
    "key-differs": "another key than the far end has under the ID",
    "sae-exchanged": "takes the master for the slave and the slave for the master",
    "bytes-for-bits": "takes and tells sizes in bytes",
    "counts-nothing": "a status that says 0 keys of 0, and 0 bits",
    "one-a-request": "gives one key a request, and says so in its status",
    "other-words": "refuses in words that say nothing, without details",
    "keys-lost": "has lost the keys that wait for this end, as after a restart",
}


class FaultError(ValueError):
    """The order to do something wrong cannot be followed; the message says why."""


@dataclass(slots=True)
class Fault:
    """One thing to do wrong. `times`: for how many calls, None: until told otherwise."""

    kind: str
    calls: frozenset[str] = frozenset(CALLS)
    times: int | None = None
    sae: str | None = None
    """Only in calls of this application."""
    status: int = 503
    body: str = "json"
    seconds: float = 5.0
    size: int = _HUNDRED_MB
    rate: float = 1.0
    number: int = field(default_factory=itertools.count(1).__next__)

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise FaultError(f"there is no fault {self.kind!r}; there are: {', '.join(KINDS)}")
        if unknown := self.calls - set(CALLS):
            raise FaultError(f"there is no call {min(unknown)!r}; there are: {', '.join(CALLS)}")
        if not self.calls:
            raise FaultError("calls is empty; leave it out for all of them")
        if self.body not in BODIES:
            raise FaultError(f"body = {self.body!r} is not one of {', '.join(BODIES)}")
        for name, low, high in (
            ("times", 1, 10**9),
            ("status", 200, 599),
            ("seconds", 0, 86_400),
            ("size", 0, 10**10),
            ("rate", 0.01, 10**9),
        ):
            value = getattr(self, name)
            if name == "times" and value is None:
                continue
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise FaultError(f"{name} = {value!r} is not a number")
            if not low <= value <= high or not math.isfinite(value):
                raise FaultError(f"{name} = {value!r} is not between {low} and {high}")

    @classmethod
    def parse(cls, document: Mapping[str, Any]) -> Fault:
        """From what was sent to the control address. Raises FaultError."""
        known = {"kind", "calls", "times", "sae", "status", "body", "seconds", "size", "rate"}
        if unknown := set(document) - known:
            raise FaultError(f"{min(unknown)!r} is no part of a fault; known: {sorted(known)}")
        values = dict(document)
        calls = values.pop("calls", None)
        if isinstance(calls, str):
            calls = [calls]
        if calls is not None:
            if not isinstance(calls, list) or not all(isinstance(call, str) for call in calls):
                raise FaultError(f"calls = {calls!r} is not a list of names")
            values["calls"] = frozenset(calls)
        if not isinstance(values.get("kind"), str):
            raise FaultError("kind is missing: the name of the fault")
        return cls(**values)

    def document(self) -> dict[str, Any]:
        """For the control address."""
        calls = [call for call in CALLS if call in self.calls]
        return {"number": self.number, "kind": self.kind, "calls": calls, "times": self.times}


class FaultBook:
    """The faults in force, in the order they were told."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []

    def add(self, fault: Fault) -> None:
        """One more."""
        self._faults.append(fault)

    def clear(self) -> None:
        """None any more."""
        self._faults.clear()

    def listed(self) -> list[dict[str, Any]]:
        """Those in force."""
        return [fault.document() for fault in self._faults]

    def take(self, call: str, sae: str) -> list[Fault]:
        """Those that this call suffers; it is one of their times."""
        hit = [f for f in self._faults if call in f.calls and f.sae in {None, sae}]
        for fault in hit:
            if fault.times is not None:
                fault.times -= 1
        self._faults = [fault for fault in self._faults if fault.times != 0]
        return hit


def instead(faults: Iterable[Fault], method: str = "GET") -> Answer | None:
    """The answer that comes in place of doing what was asked, if a fault says so."""
    for fault in faults:
        if fault.kind == "message-only":
            return Answer.of(200, {"code": 17, "message": "密钥不足: told to say so"})
        if fault.kind == "no-post" and method == "POST":
            return Answer.of(405, {"detail": "Method Not Allowed"})
        if fault.kind == "pool-empty":
            return Answer.of(503, {"message": "not enough keys are available"})
        if fault.kind == "status":
            document = {"message": "told to answer so", "details": [{"reason": "lab"}]}
            match fault.body:
                case "html":
                    return Answer(fault.status, _HTML, "text/html; charset=utf-8")
                case "empty":
                    return Answer(fault.status)
                case "fields":
                    wrong = {"loc": ["body", "size"], "msg": "told to say so", "type": "lab"}
                    return Answer.of(fault.status, {"detail": [wrong]})
                case "certificate":
                    return Answer(fault.status, _ABOUT_A_CERTIFICATE, "text/html")
                case _:
                    return Answer.of(fault.status, document)
    return None


def waits(faults: Iterable[Fault]) -> float:
    """Seconds to wait before anything is done."""
    return sum(fault.seconds for fault in faults if fault.kind == "slow")


def spoil(answer: Answer, faults: Iterable[Fault]) -> Answer:
    """The answer as the faults want it."""
    for fault in faults:
        if (change := _DOCUMENTS.get(fault.kind)) is not None and answer.status == 200:
            answer.body = json.dumps(change(copy.deepcopy(json.loads(answer.body)))).encode()
    # Only now: what follows is not JSON any more, or not at once.
    for fault in faults:
        match fault.kind:
            case "json-cut":
                answer.body = answer.body[: len(answer.body) // 2]
            case "connection-cut":
                answer.cut = len(answer.body) // 2
            case "huge":
                answer.padding, answer.chunked = fault.size, True
            case "drip":
                answer.pace = fault.rate
            case "silent":
                answer.silent = True
            case "answer-lost":
                answer.lost = True
    return answer


def _nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _nulls(each) for name, each in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return [_nulls(each) for each in value]
    return None


def _unknown(document: Any) -> Any:
    for entry in entries(document):
        entry.fields["vendor_batch"] = {"id": 7, "tags": ["a", None]}
    return {**document, "vendor_note": {"uptime": 12.5, "notes": []}, "vendor_version": "9"}


def _each(change: Callable[[Any], None]) -> Callable[[Any], Any]:
    def changed(document: Any) -> Any:
        for entry in entries(document):
            change(entry)
        return document

    return changed


def _keys_none(document: Any) -> Any:
    return {**document, "keys": []} if "keys" in document else document


def _keys_extra(document: Any) -> Any:
    if "keys" in document:
        again = copy.deepcopy(document["keys"][0])
        document["keys"].append({**again, "key_ID": str(uuid.uuid4())})
    return document


def _id_doubled(document: Any) -> Any:
    if "keys" in document:
        document["keys"].append(copy.deepcopy(document["keys"][0]))
    return document


def _short(entry: Any) -> None:
    entry.material = entry.material[:-1]


def _long(entry: Any) -> None:
    entry.material = entry.material + b"\x5a"


def _differs(entry: Any) -> None:
    entry.material = bytes([entry.material[0] ^ 1]) + entry.material[1:]


def _not_encoded(entry: Any) -> None:
    entry.fields["key"] = "*" + entry.fields["key"][1:]


def _id_missing(entry: Any) -> None:
    del entry.fields[entry.id_name]


def _id_other(entry: Any) -> None:
    entry.key_id = str(uuid.uuid4())


_DOCUMENTS: Mapping[str, Callable[[Any], Any]] = {
    "wrong-shape": lambda document: [document],
    "nulls": _nulls,
    "unknown-fields": _unknown,
    "keys-none": _keys_none,
    "keys-extra": _keys_extra,
    "id-doubled": _id_doubled,
    "key-short": _each(_short),
    "key-long": _each(_long),
    "key-differs": _each(_differs),
    "key-not-encoded": _each(_not_encoded),
    "id-missing": _each(_id_missing),
    "id-other": _each(_id_other),
}
