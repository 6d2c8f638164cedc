"""A whole exchange: its CPU at both ends beside its primitives', its datagrams and bytes."""

from __future__ import annotations

import hashlib
import hmac
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
EXCHANGES = 40
ROUNDS = 7
WHY_LIBOQS = (
    "what is not a primitive takes as many microseconds as with OpenSSL, beside primitives that "
    "take a third less"
)


def measure() -> Iterator[Row | NotRun]:
    names, about = available()
    for number in (1, 2):
        yield from _wire(number)
        for name in names:
            primitives, memory, sockets = _in_turn(number, name)
            for how, seconds in (("in memory", memory), ("over sockets", sockets)):
                met = seconds / primitives <= GOAL
                yield Row(
                    GROUP,
                    f"suite {number}, {name}: CPU of both ends, {how}",
                    seconds * 1e6,
                    "µs",
                    primitives * 1e6,
                    "its primitives",
                    f"ratio ≤ {GOAL}",
                    met,
                    WHY_LIBOQS if name == "liboqs" and not met else "",
                )
    if "liboqs" not in names:
        yield NotRun(GROUP, f"liboqs: {about}")
    yield from _ml_kem(names)


def _in_turn(number: int, ml_kem: MlKemName) -> tuple[float, float, float]:
    """CPU seconds of the primitives, of an exchange in memory, and of one over sockets.

    Measured in turn, so that what else the machine does meets all three alike; the medians.
    """
    rounds = [
        (
            sum(count * seconds for _, count, seconds in primitives_of(number, ml_kem)),
            in_memory(number, ml_kem),
            over_sockets(number, ml_kem),
        )
        for _ in range(ROUNDS)
    ]
    primitives, memory, sockets = map(statistics.median, zip(*rounds, strict=True))
    return primitives, memory, sockets


def primitives_of(number: int, ml_kem: MlKemName) -> list[tuple[str, int, float]]:
    """What one exchange cannot do without, by the libraries alone: (name, times, CPU seconds).

    Three encapsulations, three decapsulations and one key pair of both halves of the KEM; of the
    symmetric ones what docs/protocol.md §3 and §4 ask of both ends, as long as it is there.
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
    aead = ChaCha20Poly1305 if number == 1 else AESGCM
    datagrams = 7 if number == 1 else 10
    text, nonce = bytes(1200), bytes(12)
    hash_name = "sha256" if number == 1 else "sha384"
    short = bytes(64)
    hash_of = getattr(hashlib, hash_name)
    costs += [
        # The combiner of each encapsulation and decapsulation, and the seed of the key pair
        ("SHA3-256", 6, lambda: hashlib.sha3_256(short * 3).digest()),
        ("SHAKE256", 1, lambda: hashlib.shake_256(short[:32]).digest(112)),
        # Sealed and opened: {s}, {ct}, P_i and P_r; two empty payloads, biscuit and confirm_i
        ("AEAD, 1,200 bytes", 8, lambda: aead(bytes(32)).encrypt(nonce, text, short)),
        ("AEAD, short", 8, lambda: aead(bytes(32)).encrypt(nonce, short, short)),
        # MixHash of rs, e, {s} and three ciphertexts, h3 and h4; all else that is hashed is short
        ("hash, 1,200 bytes", 16, lambda: hash_of(text).digest()),
        ("hash, short", 14, lambda: hash_of(short).digest()),
        ("SHA-384 of a public key", 1, lambda: hashlib.sha384(text).digest()),
        # 16 of MixKeyAndHash, 6 of MixKey, 9 of Split, 16 from there to the preshared key
        ("HMAC", 47, lambda: hmac.digest(short[:32], short, hash_name)),
        # Each datagram's mac1 and each message's tag, made and compared
        ("BLAKE2b, 1,200 bytes", 4 * datagrams, lambda: hashlib.blake2b(text).digest()),
    ]
    return [(name, count, cpu_seconds(call, count=40, rounds=3)) for name, count, call in costs]


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

    return cpu_seconds(exchange, count=EXCHANGES, rounds=1)


def over_sockets(number: int, ml_kem: MlKemName) -> float:
    """CPU seconds of both ends for an exchange, sockets, tasks and the system's share included."""
    return trio.run(_cpu, number, ml_kem)


async def _cpu(number: int, ml_kem: MlKemName) -> float:
    left, right = pair(number, ml_kem)
    async with right.running(), left.running():
        await left.exchange("right")
        before = time.process_time()
        for _ in range(EXCHANGES):
            await left.exchange("right")
        return (time.process_time() - before) / EXCHANGES


def _wire(number: int) -> Iterator[Row]:
    datagrams, size = trio.run(_counted, number)
    yield Row(GROUP, f"suite {number}: datagrams", datagrams, "", 4, "messages")
    yield Row(GROUP, f"suite {number}: bytes of UDP payload", size, "B")


async def _counted(number: int) -> tuple[int, int]:
    left, right = pair(number, "openssl")
    async with right.counted() as there, left.counted() as here:
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
