"""Cisco SKIP (draft-cisco-skip-02) over the same pool: capabilities, key, key by ID, entropy.

A key manager's system ID is its name; it serves every application that its network knows.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from typing import Any

from vpnd_lab.kme.etsi import Caller, Refusal, Result
from vpnd_lab.kme.material import skip_id
from vpnd_lab.kme.pool import Ends, KeyNotFound, KeyOfOthers, Network, PoolEmpty
from vpnd_lab.kme.wire import Answer, Request

API = "skip"
DEFAULT_BITS = 256
MIN_KEY_BITS, MAX_KEY_BITS = 64, 8192


def call_kind(request: Request) -> str | None:
    """The kind of call by its path; None: not one of this interface."""
    match request.path:
        case ("capabilities",) | ("entropy",) | ("key",):
            return request.path[0]
        case ("key", _):
            return "key_by_id"
        case _:
            return None


def answer(
    request: Request, caller: Caller, network: Network, *, faults: Collection[str]
) -> Result:
    """Do what is asked; `faults` are the names of those in force."""
    result = Result(Answer())
    kind = call_kind(request)
    try:
        _admit(request, caller)
        match kind:
            case "capabilities":
                document = _capabilities(caller)
            case "entropy":
                document = _entropy(request)
            case "key":
                document = _new_key(request, caller, network, result.key_ids, faults)
            case _:
                document = _key_by_id(request, caller, network, result.key_ids, faults)
        result.answer = Answer.of(200, document)
    except Refusal as refusal:
        result.answer = refusal.answer
    return result


def _admit(request: Request, caller: Caller) -> None:
    if request.method != "GET":
        raise Refusal(405, "SKIP knows GET only")
    if caller.sae not in caller.homes:
        raise Refusal(401, f"{caller.sae!r} of the certificate is not known here")


def _capabilities(caller: Caller) -> dict[str, Any]:
    others = sorted(set(caller.homes.values()) - {caller.kme})
    return {
        "entropy": True,
        "key": True,
        "algorithm": "lab-qkd",
        "localSystemID": caller.kme,
        "remoteSystemID": others,
    }


def _entropy(request: Request) -> dict[str, Any]:
    bits = _bits(request, "minentropy", DEFAULT_BITS, low=8, high=65_536)
    return {"randomStr": secrets.token_hex(bits // 8), "minentropy": bits}


def _new_key(
    request: Request,
    caller: Caller,
    network: Network,
    key_ids: list[str],
    faults: Collection[str],
) -> dict[str, Any]:
    remote = _remote(request, caller)
    unit = 8 if "bytes-for-bits" in faults else 1
    default = DEFAULT_BITS // unit
    high = MAX_KEY_BITS // unit
    bits = _bits(request, "size", default, low=MIN_KEY_BITS // unit, high=high) * unit
    master, slave = _exchanged(caller.kme, remote, faults)
    try:
        ends = Ends(caller.kme, remote, master, slave)
        (key,) = network.obtain(ends, number=1, bits=bits, api=API)
    except PoolEmpty:
        raise Refusal(503, "no key is available") from None
    key_ids.append(key.key_id)
    return {"keyId": skip_id(key.key_id), "key": key.material.hex()}


def _key_by_id(
    request: Request,
    caller: Caller,
    network: Network,
    key_ids: list[str],
    faults: Collection[str],
) -> dict[str, Any]:
    remote = _remote(request, caller)
    asked = request.path[1]
    key_ids.append(asked)
    if len(asked) != 32 or any(digit not in "0123456789abcdefABCDEF" for digit in asked):
        raise Refusal(400, f"{asked!r} is not a key ID of 128 bits in hexadecimal")
    key_id = "-".join((asked[:8], asked[8:12], asked[12:16], asked[16:20], asked[20:])).lower()
    key_ids[:] = [key_id]
    master, slave = _exchanged(remote, caller.kme, faults)
    try:
        (key,) = network.retrieve(Ends(caller.kme, remote, master, slave), [key_id], api=API)
    except (KeyNotFound, KeyOfOthers):
        raise Refusal(400, f"there is no key {asked}") from None
    return {"keyId": skip_id(key.key_id), "key": key.material.hex()}


def _exchanged(one: str, other: str, faults: Collection[str]) -> tuple[str, str]:
    return (other, one) if "sae-exchanged" in faults else (one, other)


def _remote(request: Request, caller: Caller) -> str:
    remote = request.query.get("remoteSystemID")
    if remote is None:
        raise Refusal(400, "remoteSystemID is missing")
    if remote not in caller.homes.values():
        raise Refusal(400, f"there is no system {remote!r}")
    return remote


def _bits(request: Request, name: str, default: int, *, low: int, high: int) -> int:
    text = request.query.get(name, str(default))
    try:
        bits = int(text)
    except ValueError:
        raise Refusal(400, f"{name} = {text!r} is not an integer") from None
    if not low <= bits <= high or (low % 8 == 0 and bits % 8 != 0):
        raise Refusal(400, f"{name} shall be a multiple of 8 between {low} and {high}")
    return bits
