"""From the end of the Noise handshake to the WireGuard preshared key (docs/protocol.md §4).

exporter = HMAC(ck, "vpnd exporter" ‖ h)
h3       = H(h ‖ exchange id ‖ biscuit ‖ C_i)
root     = HKDF-Extract(salt = exporter, ikm = h3 ‖ external keys)
conf_i, k_resp, psk_root = HKDF-Expand(root, label);  k_rej = HKDF-Expand(exporter, label)
h4       = H(h3 ‖ C_r)
PSK      = HKDF-Expand(psk_root, "wireguard psk" ‖ h4, 32);  key id = H(label ‖ h4)[:4]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kex import labels
from kex.external import ExternalKey, root_input
from kex.secret import Secret
from kex.suites import Suite

PSK_LENGTH = 32
KEY_ID_LENGTH = 4
AEAD_KEY_LENGTH = 32


@dataclass(frozen=True, slots=True)
class Exporter:
    """What outlives the Noise handshake."""

    exporter: Secret
    k_rej: Secret
    h: bytes


@dataclass(frozen=True, slots=True)
class Root:
    """What both ends hold once the external keys are mixed."""

    root: Secret
    conf_i: Secret
    k_resp: Secret
    psk_root: Secret
    h3: bytes


@dataclass(frozen=True, slots=True)
class SessionKey:
    """The outcome: the preshared key of 32 bytes, and the key id, 8 hexadecimal digits."""

    psk: Secret
    key_id: str
    h4: bytes


def export(suite: Suite, ck: Secret, h: bytes) -> Exporter:
    exporter = suite.hmac(ck.expose(), labels.EXPORTER + h)
    k_rej = suite.hkdf_expand(exporter, labels.K_REJ, AEAD_KEY_LENGTH)
    return Exporter(Secret(exporter), Secret(k_rej), h)


def transcript3(suite: Suite, *, h: bytes, exchange_id: bytes, biscuit: bytes, c_i: bytes) -> bytes:
    """h3: the transcript up to and with P_i."""
    return suite.hash(h + exchange_id + biscuit + c_i)


def mix_root(suite: Suite, exporter: Exporter, h3: bytes, external: Sequence[ExternalKey]) -> Root:
    """IC3 / RC1: mix the external keys; `external` stands in the fixed order of P_i."""
    root = suite.hkdf_extract(exporter.exporter.expose(), h3 + root_input(external))

    def expand(label: bytes, length: int) -> Secret:
        return Secret(suite.hkdf_expand(root, label, length))

    return Root(
        root=Secret(root),
        conf_i=expand(labels.CONF_I, suite.hash_length),
        k_resp=expand(labels.K_RESP, AEAD_KEY_LENGTH),
        psk_root=expand(labels.PSK_ROOT, suite.hash_length),
        h3=h3,
    )


def confirmation(suite: Suite, root: Root) -> bytes:
    """confirm_i: proof that the initiator holds the root; `suite.hash_length` bytes."""
    return suite.hmac(root.conf_i.expose(), root.h3)


def session_key(suite: Suite, root: Root, c_r: bytes) -> SessionKey:
    """RC2 / CO1: the preshared key, bound to both payloads through h4."""
    h4 = suite.hash(root.h3 + c_r)
    psk = suite.hkdf_expand(root.psk_root.expose(), labels.PSK + h4, PSK_LENGTH)
    return SessionKey(Secret(psk), suite.hash(labels.KEY_ID + h4)[:KEY_ID_LENGTH].hex(), h4)
