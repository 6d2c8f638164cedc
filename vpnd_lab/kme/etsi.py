"""ETSI GS QKD 014 V1.1.1: status, enc_keys, dec_keys.

Where the specification leaves it open: an empty pool is 503; a key that is not there (any more,
or yet) is 400; a key of others is 401; multicast (additional_slave_SAE_IDs) is not offered.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vpnd_lab.kme.pool import Ends, Key, KeyNotFound, KeyOfOthers, Network, PoolEmpty
from vpnd_lab.kme.wire import Answer, BadRequest, Request

API = "etsi"
PREFIX = ("api", "v1", "keys")
MAX_KEYS_PER_REQUEST = 128
MIN_KEY_BITS, MAX_KEY_BITS = 64, 8192

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_VERBS: Mapping[str, tuple[str, ...]] = {
    "status": ("GET",),
    "enc_keys": ("GET", "POST"),
    "dec_keys": ("GET", "POST"),
}


class Refusal(Exception):
    """An answer other than 200."""

    def __init__(self, status: int, message: str, details: Sequence[Mapping[str, Any]] = ()):
        super().__init__(message)
        document: dict[str, Any] = {"message": message}
        if details:
            document["details"] = [dict(detail) for detail in details]
        self.answer = Answer.of(status, document)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks whom: the application, the key manager, and where each application is."""

    sae: str
    kme: str
    homes: Mapping[str, str]
    """The key manager of each application that is known (by SAE ID)."""


@dataclass(slots=True)
class Result:
    """An answer, and the IDs of the keys in question, for the record."""

    answer: Answer
    key_ids: list[str] = field(default_factory=list)


def call_kind(request: Request) -> str | None:
    """The kind of call by its path; None: not one of this interface."""
    if len(request.path) == 5 and request.path[:3] == PREFIX and request.path[4] in _VERBS:
        return request.path[4]
    return None


def answer(
    request: Request, caller: Caller, network: Network, *, key_bits: int, faults: Collection[str]
) -> Result:
    """Do what is asked; `key_bits` is the default size, `faults` the names of those in force."""
    kind, other = request.path[4], request.path[3]
    if request.method not in _VERBS[kind]:
        return Result(Refusal(405, f"{kind} is asked for with {' or '.join(_VERBS[kind])}").answer)
    service = _Service(caller, network, key_bits, frozenset(faults))
    result = Result(Answer())
    try:
        service.admit(other)
        calls: Mapping[str, Callable[[Request, str, list[str]], Any]] = {
            "status": service.status,
            "enc_keys": service.enc_keys,
            "dec_keys": service.dec_keys,
        }
        result.answer = Answer.of(200, calls[kind](request, other, result.key_ids))
    except Refusal as refusal:
        told = Refusal(refusal.answer.status, "the request was rejected").answer
        result.answer = told if "other-words" in faults else refusal.answer
    except BadRequest as error:
        result.answer = Refusal(400, str(error)).answer
    return result


@dataclass(frozen=True, slots=True)
class _Service:
    caller: Caller
    network: Network
    key_bits: int
    faults: frozenset[str]

    @property
    def _unit(self) -> int:
        """Bits of the unit in which sizes are."""
        return 8 if "bytes-for-bits" in self.faults else 1

    @property
    def _at_once(self) -> int:
        """Keys a request."""
        return 1 if "one-a-request" in self.faults else MAX_KEYS_PER_REQUEST

    def admit(self, other: str) -> None:
        """Refuse applications that are not known here."""
        if self.caller.homes.get(self.caller.sae) is None:
            raise Refusal(401, f"the SAE {self.caller.sae!r} of the certificate is not known here")
        if other not in self.caller.homes:
            raise Refusal(400, f"the SAE {other!r} is not known here", [{"SAE_ID": other}])

    def _ends(self, *, master: str, slave: str) -> Ends:
        far = slave if master == self.caller.sae else master
        if "sae-exchanged" in self.faults:
            master, slave = slave, master
        return Ends(self.caller.kme, self.caller.homes[far], master, slave)

    def status(self, request: Request, slave: str, _: list[str]) -> dict[str, Any]:
        """5.1 Get status, and 6.1 its format."""
        ends = self._ends(master=self.caller.sae, slave=slave)
        unit, pool = self._unit, self.network.settings.pool
        counts = 0 if "counts-nothing" in self.faults else 1
        return {
            "source_KME_ID": self.caller.kme,
            "target_KME_ID": ends.far_kme,
            "master_SAE_ID": ends.master,
            "slave_SAE_ID": ends.slave,
            "key_size": counts * self.key_bits // unit,
            "stored_key_count": counts * self.network.stored_bits(ends) // self.key_bits,
            "max_key_count": counts * pool // self.key_bits,
            "max_key_per_request": self._at_once,
            "max_key_size": counts * MAX_KEY_BITS // unit,
            "min_key_size": counts * MIN_KEY_BITS // unit,
            "max_SAE_ID_count": 0,
        }

    def enc_keys(self, request: Request, slave: str, key_ids: list[str]) -> dict[str, Any]:
        """5.2 Get key, 6.2 the request's format, 6.3 the key container."""
        wanted = request.json() if request.method == "POST" else _numbers(request.query)
        number = _count(wanted, "number", 1)
        size = _count(wanted, "size", self.key_bits // self._unit) * self._unit
        if number > self._at_once:
            raise Refusal(400, f"number shall be at most {self._at_once}")
        if size % 8 != 0:
            raise Refusal(400, "size shall be a multiple of 8")
        if not MIN_KEY_BITS <= size <= MAX_KEY_BITS:
            raise Refusal(400, f"size shall be between {MIN_KEY_BITS} and {MAX_KEY_BITS}")
        if _array(wanted, "additional_slave_SAE_IDs"):
            raise Refusal(400, "additional_slave_SAE_IDs are not supported: max_SAE_ID_count is 0")
        if mandatory := _array(wanted, "extension_mandatory"):
            unsupported = [{"extension_mandatory_unsupported": each} for each in mandatory]
            message = "not all extension_mandatory parameters are supported"
            raise Refusal(400, message, unsupported)
        _array(wanted, "extension_optional")
        ends = self._ends(master=self.caller.sae, slave=slave)
        try:
            keys = self.network.obtain(ends, number=number, bits=size, api=API)
        except PoolEmpty:
            raise Refusal(503, "not enough keys are available") from None
        key_ids += [key.key_id for key in keys]
        return _container(keys)

    def dec_keys(self, request: Request, master: str, key_ids: list[str]) -> dict[str, Any]:
        """5.3 Get key with key IDs, 6.4 the request's format, 6.3 the key container."""
        if request.method == "POST":
            key_ids += _wanted_ids(request.json())
        elif "key_ID" in request.query:
            key_ids.append(request.query["key_ID"])
        else:
            raise Refusal(400, "key_ID is missing")
        if not 0 < len(key_ids) <= self._at_once:
            raise Refusal(400, f"ask for 1 to {self._at_once} key IDs")
        ends = self._ends(master=master, slave=self.caller.sae)
        canonical = [_uuid(key_id) for key_id in key_ids]
        if "keys-lost" in self.faults:
            self.network.lose_keys(holder=self.caller.kme)
        try:
            return _container(self.network.retrieve(ends, canonical, api=API))
        except KeyNotFound as error:
            message = "one or more keys specified are not found on KME"
            raise Refusal(400, message, [{"key_ID": error.key_id}]) from None
        except KeyOfOthers:
            message = f"the SAE {self.caller.sae!r} may not have this key"
            raise Refusal(401, message) from None


def _container(keys: Sequence[Key]) -> dict[str, Any]:
    return {
        "keys": [
            {"key_ID": key.key_id, "key": base64.b64encode(key.material).decode("ascii")}
            for key in keys
        ]
    }


def _numbers(query: Mapping[str, str]) -> dict[str, Any]:
    wanted: dict[str, Any] = {}
    for name in ("number", "size"):
        if name in query:
            try:
                wanted[name] = int(query[name])
            except ValueError:
                raise Refusal(400, f"{name} = {query[name]!r} is not an integer") from None
    return wanted


def _count(wanted: Mapping[str, Any], name: str, default: int) -> int:
    value = wanted.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise Refusal(400, f"{name} = {value!r} is not a positive integer")
    return value


def _array(wanted: Mapping[str, Any], name: str) -> list[Any]:
    value = wanted.get(name, [])
    if not isinstance(value, list):
        raise Refusal(400, f"{name} is not an array")
    return value


def _wanted_ids(document: Mapping[str, Any]) -> list[str]:
    wanted = document.get("key_IDs")
    if not isinstance(wanted, list):
        raise Refusal(400, "key_IDs is not an array")
    key_ids = []
    for each in wanted:
        if not isinstance(each, dict) or not isinstance(each.get("key_ID"), str):
            raise Refusal(400, "key_IDs has an element that is no object with a key_ID")
        key_ids.append(each["key_ID"])
    return key_ids


def _uuid(text: str) -> str:
    if not _UUID.fullmatch(text):
        raise Refusal(400, f"key_ID {text!r} is not a UUID")
    return text.lower()
