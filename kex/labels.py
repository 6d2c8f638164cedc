"""Every label that enters a hash, a MAC or a key derivation, in one place.

No label is the beginning of another, so that ``label ‖ data`` can never be read as another label
with other data. tests/kex/test_labels.py holds them to it.
"""

from __future__ import annotations

from typing import Final

# docs/protocol.md, Noise: the prologue, and the hash that makes a fingerprint
PROLOGUE: Final = b"vpnd key exchange v1"
IDENTITY: Final = b"vpnd identity v1"

# docs/protocol.md, Steps: from the end of the handshake to the preshared key
EXPORTER: Final = b"vpnd exporter"
CONF_I: Final = b"vpnd confirmation initiator"
K_RESP: Final = b"vpnd key resp"
K_REJ: Final = b"vpnd key reject"
PSK_ROOT: Final = b"vpnd psk root"
PSK: Final = b"wireguard psk"
KEY_ID: Final = b"vpnd key id"

# docs/protocol.md, Datagrams
MAC1: Final = b"vpnd mac1"
COOKIE_KEY: Final = b"vpnd cookie key"
COOKIE: Final = b"vpnd cookie value"
MESSAGE_TAG: Final = b"vpnd message tag"
BISCUIT: Final = b"vpnd biscuit"

# draft-irtf-cfrg-concrete-hybrid-kems: the last input of each KEM's combiner
KEM_MLKEM768_X25519: Final = rb"\.//^" + b"\\"
KEM_MLKEM1024_P384: Final = b"MLKEM1024-P384"

ALL: Final[tuple[bytes, ...]] = (
    PROLOGUE,
    IDENTITY,
    EXPORTER,
    CONF_I,
    K_RESP,
    K_REJ,
    PSK_ROOT,
    PSK,
    KEY_ID,
    MAC1,
    COOKIE_KEY,
    COOKIE,
    MESSAGE_TAG,
    BISCUIT,
    KEM_MLKEM768_X25519,
    KEM_MLKEM1024_P384,
)
