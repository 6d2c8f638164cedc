"""A whole exchange: its CPU at both ends beside its primitives', its datagrams and bytes."""

from __future__ import annotations

import hashlib
import os
import statistics
import time
from collections.abc import Iterator

import trio
from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305

from bench.liboqs import available, provider
from bench.nodes import pair
from bench.result import NotRun, Row, cpu_seconds
from kex.events import KeyConfirmed, KeyEstablished, StartReason
from kex.mlkem import ML_KEM_768, ML_KEM_1024, MlKemParameterSet
from vpnd.clock import boottime
from vpnd.ml_kem import MlKemName

GROUP = "A whole exchange"
GOAL = 2.5
EXCHANGES = 60
ROUNDS = 5


def measure() -> Iterator[Row | NotRun]:
    names, about = available()
    for number in (1, 2):
        yield from _wire(number)
        for name in names:
            primitives = sum(count * seconds for _, count, seconds in primitives_of(number, name))
            for how, seconds in (
                ("in memory", in_memory(number, name)),
                ("over sockets", trio.run(_cpu, number, name)),
            ):
                yield Row(
                    GROUP,
                    f"suite {number}, {name}: CPU of both ends, {how}",
                    seconds * 1e6,
                    "µs",
                    primitives * 1e6,
                    "its primitives",
                    f"ratio ≤ {GOAL}",
                    seconds / primitives <= GOAL,
                )
    if "liboqs" not in names:
        yield NotRun(GROUP, f"liboqs: {about}")
    yield from _ml_kem(names)


def primitives_of(number: int, ml_kem: MlKemName) -> list[tuple[str, int, float]]:
    """What one exchange cannot do without, by the libraries alone: (name, times, CPU seconds).

    Three encapsulations, three decapsulations and one key pair of both halves of the KEM; of the
    symmetric ones the hashes and the sealing of the messages, as long as they are.
    """
    kem = ML_KEM_768 if number == 1 else ML_KEM_1024
    implementation = provider(ml_kem)
    seed = os.urandom(64)
    key = implementation.private_key(kem, seed)
    sent = implementation.encapsulate(kem, key.public_key)
    costs = [
        ("ML-KEM key pair", 1, lambda: implementation.private_key(kem, seed)),
        ("ML-KEM encapsulation", 3, lambda: implementation.encapsulate(kem, key.public_key)),
        ("ML-KEM decapsulation", 3, lambda: key.decapsulate(sent.ciphertext)),
    ]
    if number == 1:
        mine, theirs = os.urandom(32), x25519.X25519PrivateKey.generate().public_key()
        encoded = theirs.public_bytes_raw()
        loaded = x25519.X25519PrivateKey.from_private_bytes(mine)
        point = x25519.X25519PublicKey.from_public_bytes
        costs += [
            # One of the ephemeral's key, one in each encapsulation
            (
                "X25519 key pair",
                4,
                lambda: x25519.X25519PrivateKey.from_private_bytes(mine).public_key(),
            ),
            ("X25519", 6, lambda: loaded.exchange(point(encoded))),
        ]
    else:
        curve = ec.SECP384R1()
        other = ec.generate_private_key(curve).public_key()
        numbers = other.public_numbers()
        raw = b"\x04" + numbers.x.to_bytes(48, "big") + numbers.y.to_bytes(48, "big")
        own = ec.generate_private_key(curve)
        secret = own.private_numbers().private_value
        load = ec.EllipticCurvePublicKey.from_encoded_point
        costs += [
            ("P-384 key pair", 4, lambda: ec.derive_private_key(secret, curve).public_key()),
            ("P-384", 6, lambda: own.exchange(ec.ECDH(), load(curve, raw))),
        ]
    aead = (ChaCha20Poly1305 if number == 1 else AESGCM)(bytes(32))
    text, nonce = bytes(1200), bytes(12)
    hash_name = "sha256" if number == 1 else "sha384"
    costs += [
        # 2 messages of two sealed parts each, biscuit, InitConf, RespConf; each is opened, too
        ("AEAD, 1,200 bytes", 14, lambda: aead.encrypt(nonce, text, b"")),
        ("hash, 1,200 bytes", 24, lambda: hashlib.new(hash_name, text).digest()),
        ("BLAKE2b, 1,200 bytes", 30, lambda: hashlib.blake2b(text, digest_size=8).digest()),
    ]
    return [(name, count, cpu_seconds(call, count=200)) for name, count, call in costs]


def in_memory(number: int, ml_kem: MlKemName) -> float:
    """CPU of both endpoints, without sockets and tasks: the protocol itself."""
    left, right = pair(number, ml_kem)
    ends = {left.address: left, right.address: right}

    def exchange() -> None:
        now = boottime()
        left.endpoint.request_exchange("right", StartReason.REQUESTED, now)
        complete = False
        while not complete:
            for end in (left, right):
                for data, to in end.endpoint.datagrams_to_send():
                    ends[to].endpoint.receive_datagram(data, end.address, now)
                while (event := end.endpoint.next_event()) is not None:
                    if isinstance(event, KeyEstablished):
                        end.endpoint.key_installed(event.link, event.token, now)
                    complete |= end is left and isinstance(event, KeyConfirmed)

    return cpu_seconds(exchange, count=EXCHANGES, rounds=ROUNDS)


async def _cpu(number: int, ml_kem: MlKemName) -> float:
    left, right = pair(number, ml_kem)
    means = []
    async with right.running(), left.running():
        await left.exchange("right")
        for _ in range(ROUNDS):
            before = time.process_time()
            for _ in range(EXCHANGES):
                await left.exchange("right")
            means.append((time.process_time() - before) / EXCHANGES)
    return statistics.median(means)


def _wire(number: int) -> Iterator[Row]:
    datagrams, size = trio.run(_counted, number)
    yield Row(GROUP, f"suite {number}: datagrams", datagrams, "", 4, "messages")
    yield Row(GROUP, f"suite {number}: bytes of UDP payload", size, "B")


async def _counted(number: int) -> tuple[int, int]:
    left, right = pair(number, "openssl")
    async with right.running() as there, left.running() as here:
        await left.exchange("right")
        return here.sent.total() + there.sent.total(), here.bytes + there.bytes


def _ml_kem(names: list[MlKemName]) -> Iterator[Row]:
    """The two providers side by side."""
    if "liboqs" not in names:
        return
    steps = ("key pair", "encapsulation", "decapsulation")
    for kem in (ML_KEM_768, ML_KEM_1024):
        costs = zip(_steps(kem, "liboqs"), _steps(kem, "openssl"), strict=True)
        for step, (one, other) in zip(steps, costs, strict=True):
            name = f"{kem.name} {step}"
            yield Row("ML-KEM by liboqs", name, one * 1e6, "µs", other * 1e6, "openssl")


def _steps(kem: MlKemParameterSet, name: MlKemName) -> list[float]:
    made = provider(name)
    seed = os.urandom(64)
    key = made.private_key(kem, seed)
    sent = made.encapsulate(kem, key.public_key)
    return [
        cpu_seconds(lambda: made.private_key(kem, seed), count=300),
        cpu_seconds(lambda: made.encapsulate(kem, key.public_key), count=300),
        cpu_seconds(lambda: key.decapsulate(sent.ciphertext), count=300),
    ]
