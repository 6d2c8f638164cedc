"""The protocol once more, from docs/protocol.md alone: nothing of the package `kex` is used here.

hashlib, hmac, the `cryptography` package and kyber-py; CBOR, Bech32m and XChaCha20 are written out.
It checks the vectors in docs/vectors, and shows that the document says enough.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from cryptography.hazmat.primitives.asymmetric import ec, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from kyber_py.ml_kem import ML_KEM_768, ML_KEM_1024  # type: ignore[import-untyped]

TAG = 16

# ---- §2.1: suites


@dataclass(frozen=True)
class Suite:
    number: int
    name: bytes
    hash: str
    hash_length: int
    aead: Any
    nonce_order: Literal["little", "big"]
    ml_kem: Any
    ml_kem_ek: int
    ml_kem_ct: int
    group_seed: int
    label: bytes
    biscuit_length: int

    def digest(self, data: bytes) -> bytes:
        return hashlib.new(self.hash, data).digest()

    def mac(self, key: bytes, data: bytes) -> bytes:
        return hmac.digest(key, data, self.hash)

    def expand(self, prk: bytes, info: bytes, length: int) -> bytes:
        """HKDF-Expand, RFC 5869 §2.3."""
        out, block, counter = b"", b"", 1
        while len(out) < length:
            block = self.mac(prk, block + info + bytes([counter]))
            out, counter = out + block, counter + 1
        return out[:length]

    def noise_hkdf(self, ck: bytes, ikm: bytes) -> tuple[bytes, bytes, bytes]:
        temp = self.mac(ck, ikm)
        one = self.mac(temp, b"\x01")
        two = self.mac(temp, one + b"\x02")
        return one, two, self.mac(temp, two + b"\x03")

    def nonce(self, number: int) -> bytes:
        return bytes(4) + number.to_bytes(8, self.nonce_order)

    def seal(self, key: bytes, number: int, ad: bytes, plaintext: bytes) -> bytes:
        sealed: bytes = self.aead(key).encrypt(self.nonce(number), plaintext, ad)
        return sealed

    def open(self, key: bytes, number: int, ad: bytes, ciphertext: bytes) -> bytes:
        """InvalidTag of `cryptography` where it does not fit."""
        plaintext: bytes = self.aead(key).decrypt(self.nonce(number), ciphertext, ad)
        return plaintext

    # ---- §2.2: hybrid KEMs

    @property
    def public_key_length(self) -> int:
        return self.ml_kem_ek + {1: 32, 2: 97}[self.number]

    @property
    def ciphertext_length(self) -> int:
        return self.ml_kem_ct + {1: 32, 2: 97}[self.number]

    def key_pair(self, seed: bytes) -> tuple[bytes, bytes, Any]:
        """Public key, ML-KEM private key, group private key."""
        expanded = hashlib.shake_256(seed).digest(64 + self.group_seed)
        ek, dk = self.ml_kem.key_derive(expanded[:64])
        group = self.group_key(expanded[64:])
        return bytes(ek) + element(group), bytes(dk), group

    def group_key(self, seed: bytes) -> Any:
        if self.number == 1:
            return x25519.X25519PrivateKey.from_private_bytes(seed)
        return ec.derive_private_key(int.from_bytes(seed, "big"), ec.SECP384R1())

    def encapsulate(self, public_key: bytes, eseed: bytes) -> tuple[bytes, bytes]:
        """Ciphertext and shared secret."""
        ek, ek_t = public_key[: self.ml_kem_ek], public_key[self.ml_kem_ek :]
        ss_pq, ct = self.ml_kem._encaps_internal(ek, eseed[:32])
        ephemeral = self.group_key(eseed[32:])
        ct_t = element(ephemeral)
        return bytes(ct) + ct_t, self.combine(bytes(ss_pq), agree(ephemeral, ek_t), ct_t, ek_t)

    def decapsulate(self, seed: bytes, ciphertext: bytes) -> bytes:
        public_key, dk, group = self.key_pair(seed)
        ct, ct_t = ciphertext[: self.ml_kem_ct], ciphertext[self.ml_kem_ct :]
        ss_pq = bytes(self.ml_kem.decaps(dk, ct))
        return self.combine(ss_pq, agree(group, ct_t), ct_t, public_key[self.ml_kem_ek :])

    def combine(self, ss_pq: bytes, ss_t: bytes, ct_t: bytes, ek_t: bytes) -> bytes:
        return hashlib.sha3_256(ss_pq + ss_t + ct_t + ek_t + self.label).digest()


def element(key: Any) -> bytes:
    public = key.public_key()
    if isinstance(key, x25519.X25519PrivateKey):
        raw: bytes = public.public_bytes_raw()
        return raw
    numbers = public.public_numbers()
    point: bytes = b"\x04" + numbers.x.to_bytes(48, "big") + numbers.y.to_bytes(48, "big")
    return point


def agree(key: Any, other: bytes) -> bytes:
    if isinstance(key, x25519.X25519PrivateKey):
        raw: bytes = key.exchange(x25519.X25519PublicKey.from_public_bytes(other))
        return raw
    point = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP384R1(), other)
    shared: bytes = key.exchange(ec.ECDH(), point)
    return shared


SUITES = {
    1: Suite(
        number=1,
        name=b"Noise_pqIK_MLKEM768X25519_ChaChaPoly_SHA256",
        hash="sha256",
        hash_length=32,
        aead=ChaCha20Poly1305,
        nonce_order="little",
        ml_kem=ML_KEM_768,
        ml_kem_ek=1184,
        ml_kem_ct=1088,
        group_seed=32,
        label=b"\\.//^\\",
        biscuit_length=128,
    ),
    2: Suite(
        number=2,
        name=b"Noise_pqIK_MLKEM1024P384_AESGCM_SHA384",
        hash="sha384",
        hash_length=48,
        aead=AESGCM,
        nonce_order="big",
        ml_kem=ML_KEM_1024,
        ml_kem_ek=1568,
        ml_kem_ct=1568,
        group_seed=48,
        label=b"MLKEM1024-P384",
        biscuit_length=160,
    ),
}


# ---- §2.3: pqIK


class Noise:
    """SymmetricState and CipherState of the Noise specification."""

    def __init__(self, suite: Suite, responder_public_key: bytes) -> None:
        self.suite = suite
        short = len(suite.name) <= suite.hash_length
        self.h = suite.name.ljust(suite.hash_length, b"\0") if short else suite.digest(suite.name)
        self.ck, self.k, self.n = self.h, b"", 0
        self.mix_hash(b"vpnd key exchange v1")
        self.mix_hash(responder_public_key)

    def mix_hash(self, data: bytes) -> None:
        self.h = self.suite.digest(self.h + data)

    def mix_key(self, ikm: bytes) -> None:
        self.ck, temp, _ = self.suite.noise_hkdf(self.ck, ikm)
        self.k, self.n = temp[:32], 0

    def mix_key_and_hash(self, ikm: bytes) -> None:
        self.ck, temp_h, temp_k = self.suite.noise_hkdf(self.ck, ikm)
        self.mix_hash(temp_h)
        self.k, self.n = temp_k[:32], 0

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        if self.k:
            sealed = self.suite.seal(self.k, self.n, self.h, plaintext)
            self.n += 1
        else:
            sealed = plaintext
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = sealed
        if self.k:
            plaintext = self.suite.open(self.k, self.n, self.h, sealed)
            self.n += 1
        self.mix_hash(sealed)
        return plaintext

    def read_message1(self, message: bytes, static_seed: bytes) -> tuple[bytes, bytes]:
        """The initiator's ephemeral and static public keys."""
        ct, key = self.suite.ciphertext_length, self.suite.public_key_length
        self.mix_hash(message[:ct])
        self.mix_key_and_hash(self.suite.decapsulate(static_seed, message[:ct]))
        ephemeral = message[ct : ct + key]
        self.mix_hash(ephemeral)
        static = self.decrypt_and_hash(message[ct + key : ct + 2 * key + TAG])
        self.decrypt_and_hash(message[ct + 2 * key + TAG :])
        return ephemeral, static

    def read_message2(self, message: bytes, ephemeral_seed: bytes, static_seed: bytes) -> None:
        ct = self.suite.ciphertext_length
        self.mix_hash(message[:ct])
        self.mix_key(self.suite.decapsulate(ephemeral_seed, message[:ct]))
        skem = self.decrypt_and_hash(message[ct : 2 * ct + TAG])
        self.mix_key_and_hash(self.suite.decapsulate(static_seed, skem))
        self.decrypt_and_hash(message[2 * ct + TAG :])

    def message1(self, skem: tuple[bytes, bytes], ephemeral: bytes, static: bytes) -> bytes:
        message = self.encrypt_and_hash(skem[0])
        self.mix_key_and_hash(skem[1])
        self.mix_hash(ephemeral)
        return message + ephemeral + self.encrypt_and_hash(static) + self.encrypt_and_hash(b"")

    def message2(self, ekem: tuple[bytes, bytes], skem: tuple[bytes, bytes]) -> bytes:
        self.mix_hash(ekem[0])
        self.mix_key(ekem[1])
        sealed = self.encrypt_and_hash(skem[0])
        self.mix_key_and_hash(skem[1])
        return ekem[0] + sealed + self.encrypt_and_hash(b"")

    def split(self) -> tuple[bytes, bytes]:
        one, two, _ = self.suite.noise_hkdf(self.ck, b"")
        return one[:32], two[:32]


# ---- §2.4: fingerprints


def fingerprint(suite: int, public_key: bytes) -> bytes:
    return hashlib.sha384(b"vpnd identity v1" + bytes([suite]) + public_key).digest()[:32]


def bech32m(prefix: str, data: bytes) -> str:
    """BIP 350."""
    bits = "".join(f"{byte:08b}" for byte in data)
    bits += "0" * (-len(bits) % 5)
    values = [int(bits[i : i + 5], 2) for i in range(0, len(bits), 5)]
    codes = [ord(c) >> 5 for c in prefix] + [0] + [ord(c) & 31 for c in prefix]
    check = 1
    for value in codes + values + [0] * 6:
        top = check >> 25
        check = (check & 0x1FFFFFF) << 5 ^ value
        for i, generator in enumerate((0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)):
            check ^= generator if top >> i & 1 else 0
    check ^= 0x2BC830A3
    values += [check >> 5 * (5 - i) & 31 for i in range(6)]
    return prefix + "1" + "".join("qpzry9x8gf2tvdw0s3jn54khce6mua7l"[value] for value in values)


# ---- §3: datagrams


def blake2b(data: bytes, size: int, key: bytes = b"") -> bytes:
    return hashlib.blake2b(data, digest_size=size, key=key).digest()


QUESTIONS = {1, 3, 6}
"""InitHello, InitConf, IdentityQuery."""


def mac1_key(kind: int, suite: int, digest: bytes) -> bytes:
    """`digest` is that of the node that was asked, in questions and in answers."""
    return blake2b(b"vpnd mac1" + bytes([kind, suite]) + digest, 32)


def cut(
    kind: int,
    suite: int,
    exchange_id: bytes,
    body: bytes,
    mac_key: bytes,
    cookie: bytes = b"",
    chunk_length: int = 1200,
) -> list[bytes]:
    """A message in datagrams."""
    tag = blake2b(b"vpnd message tag" + bytes([kind, suite]) + exchange_id + body, 32)[:4]
    chunks = [body[i : i + chunk_length] for i in range(0, len(body), chunk_length)]
    out = []
    for index, chunk in enumerate(chunks):
        head = bytes([0x10 | kind, suite, index, len(chunks)]) + tag + exchange_id
        covered = head + chunk
        covered += blake2b(covered, 8, mac_key)
        out.append(covered + (blake2b(covered, 8, cookie) if cookie else bytes(8)))
    return out


def join(datagrams: list[bytes], mac_key: bytes) -> tuple[int, bytes, bytes]:
    """Type, exchange id and message of datagrams that are all there; ValueError if one is off."""
    for datagram in datagrams:
        if blake2b(datagram[:-16], 8, mac_key) != datagram[-16:-8]:
            raise ValueError("mac1")
    body = b"".join(d[16:-16] for d in sorted(datagrams, key=lambda d: d[2]))
    kind, suite, exchange_id = datagrams[0][0] & 15, datagrams[0][1], datagrams[0][8:16]
    tag = blake2b(b"vpnd message tag" + bytes([kind, suite]) + exchange_id + body, 32)[:4]
    if {d[4:8] for d in datagrams} != {tag}:
        raise ValueError("tag")
    return kind, exchange_id, body


# ---- §3.4: cookies


def hchacha20(key: bytes, nonce: bytes) -> bytes:
    """draft-irtf-cfrg-xchacha §2.2."""
    x = list(struct.unpack("<16I", b"expand 32-byte k" + key + nonce))

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for p, q, r, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            x[r] ^= x[p]
            x[r] = (x[r] << turn | x[r] >> (32 - turn)) & 0xFFFFFFFF

    for _ in range(10):
        for i in range(4):
            quarter(i, i + 4, i + 8, i + 12)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return struct.pack("<8I", *x[:4], *x[12:])


def xchacha20_poly1305(key: bytes, nonce: bytes, plaintext: bytes, ad: bytes) -> bytes:
    subkey = hchacha20(key, nonce[:16])
    return ChaCha20Poly1305(subkey).encrypt(bytes(4) + nonce[16:], plaintext, ad)


def cookie(secret: bytes, address: str) -> bytes:
    return blake2b(b"vpnd cookie value" + address.encode(), 16, secret)


def cookie_reply_key(suite: int, digest: bytes) -> bytes:
    return blake2b(b"vpnd cookie key" + bytes([suite]) + digest, 32)


# ---- §4: biscuit and key schedule


def biscuit(
    suite: Suite,
    *,
    key_id: bytes,
    key: bytes,
    number: int,
    ad: bytes,
    plaintext: bytes,
) -> bytes:
    return key_id + number.to_bytes(8, "big") + suite.seal(key, number, ad, plaintext)


def root_input(keys: list[bytes | None]) -> bytes:
    out = b""
    for key in keys:
        value = b"" if key is None else key
        out += bytes([key is not None]) + len(value).to_bytes(2, "big") + value
    return out


# ---- §5: payloads


def cbor(data: bytes) -> Any:
    """A data item of RFC 8949 in the subset that payloads use; byte strings in hex."""
    value, rest = _item(data)
    if rest:
        raise ValueError("bytes behind the item")
    return value


def _item(data: bytes) -> tuple[Any, bytes]:
    major, info, rest = data[0] >> 5, data[0] & 31, data[1:]
    if major == 7:
        return {20: False, 21: True, 22: None}[info], rest
    if info >= 24:
        size = 1 << (info - 24)
        info, rest = int.from_bytes(rest[:size], "big"), rest[size:]
    if major == 0:
        return info, rest
    if major == 2:
        return rest[:info].hex(), rest[info:]
    if major == 3:
        return rest[:info].decode(), rest[info:]
    if major not in (4, 5):
        raise ValueError(f"major type {major}")
    items: list[Any] = []
    for _ in range(info * (major - 3)):
        item, rest = _item(rest)
        items.append(item)
    return (items if major == 4 else dict(zip(items[::2], items[1::2], strict=True))), rest


def payload_fields(data: bytes) -> Any:
    size = int.from_bytes(data[:2], "big")
    if any(data[2 + size :]):
        raise ValueError("no zeros behind the map")
    return cbor(data[2 : 2 + size])


def encode_cbor(value: Any) -> bytes:
    """The same subset, every length and integer in four bytes: legal, in no way canonical."""

    def head(major: int, number: int) -> bytes:
        return bytes([major << 5 | 26]) + number.to_bytes(4, "big")

    if isinstance(value, bool):
        return b"\xf5" if value else b"\xf4"
    if isinstance(value, int):
        return head(0, value)
    if isinstance(value, bytes):
        return head(2, len(value)) + value
    if isinstance(value, str):
        return head(3, len(value.encode())) + value.encode()
    if isinstance(value, list):
        return head(4, len(value)) + b"".join(map(encode_cbor, value))
    pairs = b"".join(encode_cbor(name) + encode_cbor(each) for name, each in value.items())
    return head(5, len(value)) + pairs


def padded(fields: dict[str, Any], length: int) -> bytes:
    encoded = encode_cbor(fields)
    return (len(encoded).to_bytes(2, "big") + encoded).ljust(length, b"\0")


# ---- §5.6: external keys

OFF, PREFER, REQUIRE = 0, 1, 2
MALFORMED, POLICY, WIREGUARD_KEY, KEY_MANAGER, KEY_MISMATCH, INSTALL_FAILED = range(1, 7)


@dataclass(frozen=True)
class Listed:
    """An entry of `keys`, and its key where it is present."""

    source_type: str
    source: str
    sae: str
    key_ids: tuple[str, ...]
    bits: int
    key: bytes | None

    @property
    def entry(self) -> list[Any]:
        ids = list(self.key_ids)
        return [self.source_type, self.source, self.sae, ids, self.bits, self.key is not None]


def static_key_id(key: bytes) -> str:
    return hashlib.blake2b(key, digest_size=16, person=b"vpnd-file-key-id").hexdigest()


def static(key: bytes) -> Listed:
    return Listed("file", "", "", (static_key_id(key),), 8 * len(key), key)


def delivered(kind: str, source: str, sae: str, parts: list[tuple[str, bytes]]) -> Listed:
    """A key of key manager `source`, which knows the initiator as `sae`."""
    key = b"".join(part for _, part in parts)
    return Listed(kind, source, sae, tuple(key_id for key_id, _ in parts), 8 * len(key), key)


def not_present(kind: str, name: str) -> Listed:
    return Listed(kind, name, "", (), 0, None)


def in_order(keys: list[Listed]) -> list[Listed]:
    return sorted(keys, key=lambda each: each.entry[:5])


class Refused(Exception):
    """The responder's Reject."""

    def __init__(self, code: int, failed: list[int] | None = None) -> None:
        super().__init__(code, failed)
        self.code, self.failed = code, failed or []


@dataclass(frozen=True)
class Source:
    """A source that a responder has for a link: `far` is the initiator's name there; `ask` gives
    the keys of some key IDs of that master, by ID, or nothing."""

    kind: str
    name: str
    far: str = ""
    static_key: bytes = b""
    ask: Callable[[str, tuple[str, ...]], dict[str, bytes] | None] = lambda far, ids: None


@dataclass(frozen=True)
class Responder:
    """What a responder is configured to have for a link."""

    sources: tuple[Source, ...]
    mode: int = PREFER
    at_least: int = 1
    required: tuple[str, ...] = ()

    def keys_of(self, entries: list[list[Any]]) -> list[bytes | None]:
        """The key of each entry, None where it is not present. Raises Refused."""
        present = [at for at, entry in enumerate(entries) if entry[5]]
        least = self.at_least if self.mode == REQUIRE else 0
        if len(present) < least or (self.mode == OFF and present):
            raise Refused(POLICY)
        meant, unknown, mismatch = {}, [], False
        for at in present:
            source = self.source_of(entries[at])
            if source is not None:
                meant[at] = source
                continue
            unknown.append(at)
            statics = any(source.static_key for source in self.sources)
            mismatch = mismatch or (entries[at][0] == "file" and statics)
        if unknown:
            raise Refused(KEY_MISMATCH) if mismatch else Refused(KEY_MANAGER, unknown)
        names = [source.name for source in meant.values()]
        lacking = self.mode == REQUIRE and not set(self.required) <= set(names)
        if lacking or len(set(names)) < len(names):
            raise Refused(POLICY)
        keys: list[bytes | None] = [None] * len(entries)
        failed = []
        for at, source in meant.items():
            keys[at] = key_of(source, entries[at])
            if keys[at] is None:
                failed.append(at)
        if failed:
            raise Refused(KEY_MANAGER, failed)
        return keys

    def source_of(self, entry: list[Any]) -> Source | None:
        for source in self.sources:
            if source.kind != entry[0]:
                continue
            if source.kind == "file":
                if [static_key_id(source.static_key)] == entry[3]:
                    return source
            elif source.far == entry[2]:
                return source
        return None


def key_of(source: Source, entry: list[Any]) -> bytes | None:
    """The key of an entry that means this source; None where it cannot be had."""
    _, _, _, ids, bits, _ = entry
    if source.kind == "file":
        if 8 * len(source.static_key) != bits:
            raise Refused(KEY_MISMATCH)
        return source.static_key
    most = 4 if source.kind == "qkd" else 1
    if not 1 <= len(ids) <= most or len(set(ids)) < len(ids) or "" in ids:
        return None
    if bits % (8 * len(ids)):
        return None
    found = source.ask(source.far, tuple(ids))
    if found is None or any(8 * len(found[each]) * len(ids) != bits for each in ids):
        return None
    return b"".join(found[each] for each in ids)


def check_same(confirm_i: bytes, theirs: bytes) -> None:
    if not hmac.compare_digest(confirm_i, theirs):
        raise Refused(KEY_MISMATCH)


def reason(code: int, detail: str, failed: list[int]) -> bytes:
    fields = {"code": code, "detail": detail} | ({"failed": failed} if failed else {})
    return padded(fields, 240)
