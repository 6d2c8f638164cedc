"""vpnd's key sources and policy at one end, the second implementation at the other: keys of each
source type are mixed, in both roles, and both ends refuse the same for the same reasons.

    left: an endpoint, LinkExternal, QkdSource, SkipSource, FileSource ── TLS ── a key manager
    right: tests/kex/second_implementation.py, which reaches that key manager's twin by a call
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import trio

from kex.endpoint import Endpoint
from kex.events import (
    ExchangeFailed,
    ExternalKeysWanted,
    KeyEstablished,
    RejectCode,
    RejectSent,
)
from kex.external import ExternalMode
from tests.kex import second_implementation as second
from tests.kex.harness import SUITES, Network, identity, pair
from tests.kex.reference import SeededBytes
from tests.kex.second_implementation import Listed, Responder, Source
from tests.kex.test_interoperation import THEM, US, Initiating, Responding, check_key
from tests.vpnd.keysource.conftest import QkdConfig, SkipConfig, Told
from tests.vpnd.keysource.test_file_source import config as file_config
from tests.vpnd.keysource.test_file_source import written
from tests.vpnd.keysource.tls_server import Received, Stream, TlsServer, http
from vpnd import config_source
from vpnd.clock import boottime
from vpnd.config import complete_peer
from vpnd.config_model import Defaults, PeerSettings, validate
from vpnd.engine import Engine
from vpnd.event_feed import EventFeed
from vpnd.external_policy import MODES
from vpnd.external_record import ExternalRecords
from vpnd.fallback_watch import FallbackWatch
from vpnd.journal import Journal
from vpnd.keysource.base import KeySource
from vpnd.keysource.file_source import FileSource
from vpnd.keysource.qkd_source import QkdSource
from vpnd.keysource.skip_source import SkipSource
from vpnd.link_external import LinkExternal

OUR_SAE, THEIR_SAE = "sae-left", "sae/right 1"
OUR_SYSTEM, THEIR_SYSTEM = "KP_LEFT", "KP_RIGHT"
STATIC = SeededBytes(b"static key")(48)
OTHER_STATIC = SeededBytes(b"another static key")(48)


@dataclass
class KeyManagers:
    """A pair of key managers: a key is delivered once to each end. ETSI GS QKD 014 and SKIP."""

    largest: int = 256
    """Bits of a key."""
    random: SeededBytes = field(default_factory=lambda: SeededBytes(b"key managers"))
    keys: dict[tuple[str, str], dict[str, bytes]] = field(default_factory=dict)
    """By (who asked for it, for whom): by ID."""
    empty: bool = False

    def new(self, master: str, slave: str, bits: int, number: int = 1) -> list[tuple[str, bytes]]:
        made = [
            (self.random(16).hex(), self.random(bits // 8))
            for _ in range(0 if self.empty else number)
        ]
        self.keys.setdefault((master, slave), {}).update(made)
        return made

    def of(self, master: str, slave: str, ids: list[str]) -> dict[str, bytes] | None:
        known = self.keys.get((master, slave), {})
        return {each: known.pop(each) for each in ids} if set(ids) <= set(known) else None

    async def serve(self, request: Received, stream: Stream) -> None:
        """The one beside `left`."""
        await stream.send_all(self.answer(request))
        await stream.aclose()

    def answer(self, request: Received) -> bytes:
        parts = urlsplit(request.target)
        query = {name: found[0] for name, found in parse_qs(parts.query).items()}
        *_, last, call = map(unquote, parts.path.split("/"))
        if call == "status":
            return http(200, {"source_KME_ID": "KME-LEFT", "max_key_size": self.largest})
        if call == "enc_keys":
            wanted = json.loads(request.body)
            return self.container(self.new(OUR_SAE, last, wanted["size"], wanted["number"]))
        if call == "dec_keys":
            ids = [each["key_ID"] for each in json.loads(request.body)["key_IDs"]]
            found = self.of(last, OUR_SAE, ids)
            # In another order than was asked for, as it may
            return http(401) if found is None else self.container(list(found.items())[::-1])
        if call == "capabilities":
            return http(200, {"localSystemID": OUR_SYSTEM, "remoteSystemID": [THEIR_SYSTEM]})
        far = query["remoteSystemID"]
        if call == "key":
            made = self.new(OUR_SYSTEM, far, int(query["size"]))
        else:
            made = list((self.of(far, OUR_SYSTEM, [call]) or {}).items())
        if not made:
            return http(401)
        return http(200, {"keyId": made[0][0], "key": made[0][1].hex()})

    @staticmethod
    def container(keys: list[tuple[str, bytes]]) -> bytes:
        said = [{"key_ID": one, "key": base64.b64encode(key).decode()} for one, key in keys]
        return http(200, {"keys": said})

    def sources(self, static: bytes = STATIC) -> tuple[Source, ...]:
        """What `right` has, with the key manager beside it."""
        return (
            Source("qkd", "kme", far=OUR_SAE, ask=self.asking(THEIR_SAE)),
            Source("skip", "provider", far=OUR_SYSTEM, ask=self.asking(THEIR_SYSTEM)),
            Source("file", "shared", static_key=static),
        )

    def asking(self, own: str) -> Callable[[str, tuple[str, ...]], dict[str, bytes] | None]:
        """dec_keys or /key/ID of the end that is known as `own`."""
        return lambda far, ids: self.of(far, own, list(ids))


class Ours:
    """The node `left`, with the part of the daemon that answers for its external keys."""

    def __init__(
        self, number: int, folder: Path, sources: Mapping[str, KeySource], external: dict[str, Any]
    ) -> None:
        none = config_source.Source(None)
        values = {
            "identity": identity(number, THEM).fingerprint.text(),
            "allowed_ips": ["10.0.0.0/8"],
            "external_keys": {"min_interval": 0} | external,
        }
        settings = validate(PeerSettings, values, none)
        file = folder / "right.toml"
        peer = complete_peer(THEM, file, settings, Defaults(), ("backbone",), none)
        mode: ExternalMode = MODES[peer.external_keys.mode]
        policy = {"external_mode": mode, "external_at_least": peer.external_keys.minimum}
        self.network: Network = pair(number, links={US: policy})
        journal = Journal(EventFeed())
        watch = FallbackWatch(
            THEM, peer.external_keys, ExternalRecords(folder), journal, lambda: None
        )
        self.driven = trio.Event()
        self.external = LinkExternal(
            peer, engine=cast(Engine, self), find=sources.get, watch=watch, journal=journal
        )

    @contextmanager
    def driving(self) -> Iterator[tuple[Endpoint, float]]:
        """As the engine has it."""
        yield self.network[US].endpoint, self.network.now
        self.driven.set()

    async def answer(self) -> ExternalKeysWanted:
        """Answer what the endpoint wanted last."""
        *_, wanted = self.network[US].events_of(ExternalKeysWanted)
        self.driven = trio.Event()
        # The network's time stands still, and is another one than the sources'
        self.external.wanted(replace(wanted, deadline=boottime() + 8))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.external.run)
            with trio.fail_after(20):
                await self.driven.wait()
            nursery.cancel_scope.cancel()
        self.network.collect()
        for failed in self.network[US].events_of(ExchangeFailed)[-1:]:
            self.external.failed(failed)
        return wanted

    @property
    def refused(self) -> RejectSent:
        (told,) = self.network[US].events_of(RejectSent)
        return told


Sources = dict[str, KeySource]


@pytest.fixture(params=SUITES, ids=["suite 1", "suite 2"])
def number(request: pytest.FixtureRequest) -> int:
    value: int = request.param
    return value


@pytest.fixture
def managers() -> KeyManagers:
    return KeyManagers()


@pytest.fixture
async def sources(
    kme: TlsServer,
    managers: KeyManagers,
    qkd_config: QkdConfig,
    skip_config: SkipConfig,
    tmp_path: Path,
    told: Told,
) -> Sources:
    kme.answers = [managers.serve]
    qkd = qkd_config(kme, sae=OUR_SAE, quirks=[])
    return {
        "kme": QkdSource("kme", qkd, told),
        "long": QkdSource("long", qkd_config(kme, sae=OUR_SAE, quirks=[], key_size=768), told),
        "provider": SkipSource("provider", skip_config(kme), told),
        "shared": FileSource("shared", file_config(written(tmp_path, STATIC)), told),
    }


FARS = {"kme": THEIR_SAE, "long": THEIR_SAE, "provider": THEIR_SYSTEM, "shared": None}


def uses(*names: str) -> list[dict[str, str]]:
    """`sources` of the link at `left`."""
    fars = {name: FARS[name] for name in names}
    return [
        {"source": name} | ({} if far is None else {"peer_sae": far}) for name, far in fars.items()
    ]


ALL = ("kme", "provider", "shared")
COMBINATIONS = [("kme",), ("provider",), ("shared",), ("long",), ALL, ("shared", "long")]
EACH = pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)


def of_second(managers: KeyManagers, *names: str) -> list[Listed]:
    """What the second implementation lists for these, as an initiator."""
    bits = {"kme": (256, 1), "long": (256, 3)}
    found = []
    for name in names:
        if name in bits:
            parts = managers.new(THEIR_SAE, OUR_SAE, *bits[name])
            found.append(second.delivered("qkd", "KME-RIGHT", THEIR_SAE, parts))
        elif name == "provider":
            parts = managers.new(THEIR_SYSTEM, OUR_SYSTEM, 256)
            found.append(second.delivered("skip", THEIR_SYSTEM, THEIR_SYSTEM, parts))
        else:
            found.append(second.static(STATIC))
    return second.in_order(found)


def initiating(number: int, ours: Ours) -> Initiating:
    node = Initiating(number, ours.network, 1200)
    node.hello()
    return node


async def responding(number: int, ours: Ours) -> Responding:
    """`left` begins, and has its external keys or none."""
    node = Responding(number, ours.network, 1200)
    ours.network.start(US, THEM)
    node.hello()
    await ours.answer()
    return node


# ---- the second implementation begins


@EACH
async def test_ours_finds_what_the_second_lists(
    number: int, names: tuple[str, ...], sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    ours = Ours(number, tmp_path, sources, {"mode": "require", "sources": uses(*names)})
    node = initiating(number, ours)
    node.confirm(of_second(managers, *names))
    await ours.answer()
    psk, key_id, said = node.key()
    assert said["mixed"] == len(names)
    check_key(ours.network, psk, key_id)


async def test_ours_leaves_out_what_is_not_present(
    sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    """An entry that is not present may even be of a type that nobody knows."""
    ours = Ours(1, tmp_path, sources, {"mode": "prefer", "sources": uses(*ALL)})
    node = initiating(1, ours)
    absent = [second.not_present("qkd", "kme-right"), second.not_present("none", "gone")]
    node.confirm(second.in_order([*of_second(managers, "shared"), *absent]))
    await ours.answer()
    psk, key_id, said = node.key()
    assert said["mixed"] == 1
    check_key(ours.network, psk, key_id)


def changed(name: str, **changes: Any) -> Callable[[KeyManagers], list[Listed]]:
    return lambda managers: [replace(*of_second(managers, name), **changes)]


def two_of_one(managers: KeyManagers) -> list[Listed]:
    return second.in_order([*of_second(managers, "kme"), *of_second(managers, "kme")])


def with_static(*others: Listed) -> Callable[[KeyManagers], list[Listed]]:
    return lambda managers: [*others, *of_second(managers, "kme")]


KEY = bytes(range(32))
REFUSED: dict[str, tuple[str, Callable[[KeyManagers], list[Listed]], RejectCode, list[int]]] = {
    "off": ("off", lambda m: of_second(m, "kme"), RejectCode.POLICY, []),
    "too few": ("require", lambda m: of_second(m, "kme"), RejectCode.POLICY, []),
    "two of one source": ("prefer", two_of_one, RejectCode.POLICY, []),
    "another SAE": ("prefer", changed("kme", sae=OUR_SAE), RejectCode.KEY_MANAGER, [0]),
    "another system": ("prefer", changed("provider", sae="x"), RejectCode.KEY_MANAGER, [0]),
    "the SAE in another case": (
        "prefer",
        changed("kme", sae=THEIR_SAE.upper()),
        RejectCode.KEY_MANAGER,
        [0],
    ),
    "an unknown type": ("prefer", changed("kme", source_type="new"), RejectCode.KEY_MANAGER, [0]),
    "no key ID": ("prefer", changed("kme", key_ids=()), RejectCode.KEY_MANAGER, [0]),
    "an empty key ID": ("prefer", changed("kme", key_ids=("",)), RejectCode.KEY_MANAGER, [0]),
    "a key ID twice": ("prefer", changed("kme", key_ids=("a", "a")), RejectCode.KEY_MANAGER, [0]),
    "parts that are no whole bytes": (
        "prefer",
        changed("kme", key_ids=("a", "b", "c")),
        RejectCode.KEY_MANAGER,
        [0],
    ),
    "two key IDs of SKIP": (
        "prefer",
        changed("provider", key_ids=("aa", "bb")),
        RejectCode.KEY_MANAGER,
        [0],
    ),
    "a key that is not there": (
        "prefer",
        changed("kme", key_ids=("never made",)),
        RejectCode.KEY_MANAGER,
        [0],
    ),
    "a key of another length": (
        "prefer",
        changed("kme", bits=128, key=KEY[:16]),
        RejectCode.KEY_MANAGER,
        [0],
    ),
    "another key": ("prefer", changed("kme", key=KEY), RejectCode.KEY_MISMATCH, []),
    "another static key": (
        "prefer",
        lambda m: [second.static(OTHER_STATIC)],
        RejectCode.KEY_MISMATCH,
        [],
    ),
    "the hash in capital letters": (
        "prefer",
        changed("shared", key_ids=(second.static_key_id(STATIC).upper(),)),
        RejectCode.KEY_MISMATCH,
        [],
    ),
    "a static key's hash with another length": (
        "prefer",
        changed("shared", bits=256, key=STATIC[:32]),
        RejectCode.KEY_MISMATCH,
        [],
    ),
    "another static key beside an unknown type": (
        "prefer",
        with_static(second.static(OTHER_STATIC), Listed("new", "", "", (), 256, KEY)),
        RejectCode.KEY_MISMATCH,
        [],
    ),
}


@pytest.mark.parametrize("what", REFUSED)
async def test_both_refuse_the_same(
    what: str, sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    """Ours as a responder, and the second implementation as one with the same configuration."""
    mode, listed, code, failed = REFUSED[what]
    external = {"mode": mode, "sources": uses(*ALL)} if mode != "off" else {"mode": mode}
    ours = Ours(1, tmp_path, sources, external)
    node = initiating(1, ours)
    keys = listed(managers)
    node.confirm(keys)
    if not ours.network[US].events_of(RejectSent):
        await ours.answer()
    said = node.refusal()
    assert (said["code"], said.get("failed", [])) == (code, failed)
    assert ours.refused.code is code
    assert not ours.network[US].events_of(KeyEstablished)

    twin = KeyManagers()
    again = listed(twin)
    as_ours = (
        Source("qkd", "kme", far=THEIR_SAE, ask=twin.asking(OUR_SAE)),
        Source("skip", "provider", far=THEIR_SYSTEM, ask=twin.asking(OUR_SYSTEM)),
        Source("file", "shared", static_key=STATIC),
    )
    policy = Responder(as_ours, mode=MODES[mode], at_least=3 if mode == "require" else 1)
    if what == "another key":
        assert policy.keys_of([each.entry for each in again]) != [each.key for each in again]
        return
    with pytest.raises(second.Refused) as refused:
        policy.keys_of([each.entry for each in again])
    assert (refused.value.code, refused.value.failed) == (code, failed)


async def test_a_source_that_is_needed_by_name(
    sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    external = {"mode": "require", "sources": uses("kme", "shared"), "require": ["kme"]}
    ours = Ours(1, tmp_path, sources, external)
    node = initiating(1, ours)
    node.confirm(of_second(managers, "shared"))
    await ours.answer()
    assert node.refusal()["code"] == RejectCode.POLICY
    policy = Responder((Source("file", "shared", static_key=STATIC),), second.REQUIRE, 1, ("kme",))
    with pytest.raises(second.Refused) as refused:
        policy.keys_of([second.static(STATIC).entry])
    assert refused.value.code == second.POLICY


# ---- ours begins


@EACH
async def test_the_second_finds_what_ours_lists(
    number: int, names: tuple[str, ...], sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    ours = Ours(number, tmp_path, sources, {"mode": "require", "sources": uses(*names)})
    node = await responding(number, ours)
    said, key = node.answer(Responder(managers.sources(), mode=second.REQUIRE, at_least=len(names)))
    assert key is not None
    check_key(ours.network, *key)
    kinds = {"kme": "qkd", "long": "qkd", "provider": "skip", "shared": "file"}
    entries = said["keys"]
    assert [entry[0] for entry in entries] == sorted(kinds[name] for name in names)
    assert entries == sorted(entries)
    for kind, source, sae, ids, bits, present in entries:
        assert present
        if kind == "qkd":
            assert (source, sae) == ("KME-LEFT", OUR_SAE)
            assert (len(ids), bits) == ((3, 768) if "long" in names else (1, 256))
        elif kind == "skip":
            assert (source, sae, len(ids), bits) == (OUR_SYSTEM, OUR_SYSTEM, 1, 256)
        else:
            ours_id = second.static_key_id(STATIC)
            assert (source, sae, ids, bits) == ("", "", [ours_id], 8 * len(STATIC))


async def test_ours_lists_a_source_that_has_no_key(
    sources: Sources, managers: KeyManagers, tmp_path: Path
) -> None:
    managers.empty = True
    ours = Ours(2, tmp_path, sources, {"mode": "prefer", "sources": uses(*ALL)})
    node = await responding(2, ours)
    said, key = node.answer(Responder(managers.sources()))
    assert key is not None
    check_key(ours.network, *key)
    assert [entry for entry in said["keys"] if not entry[5]] == [
        second.not_present("qkd", "kme").entry,
        second.not_present("skip", "provider").entry,
    ]
    assert [entry[0] for entry in said["keys"] if entry[5]] == ["file"]


@pytest.mark.parametrize(
    ("policy", "code"),
    [
        (Responder((), mode=second.OFF), RejectCode.POLICY),
        (Responder((), mode=second.PREFER), RejectCode.KEY_MANAGER),
        (
            Responder((Source("file", "shared", static_key=OTHER_STATIC),)),
            RejectCode.KEY_MISMATCH,
        ),
    ],
    ids=["policy", "key manager", "mismatch"],
)
async def test_ours_is_refused(
    policy: Responder, code: RejectCode, sources: Sources, tmp_path: Path
) -> None:
    """In `prefer` it goes on without after two of the codes; after a mismatch it never does."""
    ours = Ours(1, tmp_path, sources, {"mode": "prefer", "sources": uses("shared")})
    node = await responding(1, ours)
    _, key = node.answer(policy)
    assert key is None
    (failed,) = ours.network[US].events_of(ExchangeFailed)
    assert failed.reject == code
    assert not ours.network[US].events_of(KeyEstablished)
    ours.network.now += 1.1
    ours.network[US].endpoint.handle_timer(ours.network.now)
    ours.network.collect()
    again = Responding(1, ours.network, 1200)
    again.random = SeededBytes(b"once more")
    again.hello()
    if code is RejectCode.KEY_MISMATCH:
        await ours.answer()
    said, key = again.answer(Responder((Source("file", "shared", static_key=STATIC),)))
    assert [entry[0] for entry in said["keys"]] == (
        ["file"] if code is RejectCode.KEY_MISMATCH else []
    )
    assert key is not None
    check_key(ours.network, *key)
