"""`[key_sources.NAME]` of vpnd.toml: where keys from outside come from (docs/qkd.md).

One table for each type of source; `type` says which. Files that a table names are looked at by
`vpnd.keysource.files`, not here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Final, Literal, Self
from urllib.parse import SplitResult, urlsplit

from pydantic import AfterValidator, BeforeValidator, ConfigDict, PlainValidator, model_validator

from kex.external import MAX_KEY_LENGTH, MAX_NAME_LENGTH, MAX_SAE_LENGTH, MIN_KEY_LENGTH
from vpnd import config_fields as fields
from vpnd.config_errors import Location, kind_of, shown
from vpnd.config_fields import FieldError, did_you_mean
from vpnd.config_model import AbsolutePath, Table, validate
from vpnd.config_source import Source
from vpnd.source_use import no_step_of_a_path

MAX_ADDRESSES: Final = 8
MAX_KEY_SOURCES: Final = 64
QUIRKS: Final = ("size-in-bytes", "no-size", "no-status", "other-sae-names", "other-key-ids")
"""What a key manager may do against the specification where it is switched on: docs/qkd.md."""

API_PATH: Final = "/api/v1/keys"
"""ETSI GS QKD 014 V1.1.1, clause 5.1."""
CREDENTIAL: Final = "credential:"
"""In the place of a path: a file in $CREDENTIALS_DIRECTORY, which systemd makes."""
MAX_HEADERS: Final = 8
MAX_PSK_IDENTITY: Final = 128
"""Bytes (RFC 4279, section 5.3)."""

_API_PATH: Final = re.compile(r"(/[A-Za-z0-9._~!$&'()*+,;=:@%-]+)+", re.ASCII)
_CREDENTIAL_NAME: Final = re.compile(r"[A-Za-z0-9._@-]{1,255}", re.ASCII)
_HEADER_NAME: Final = re.compile(r"[A-Za-z0-9-]{1,64}", re.ASCII)
_OWN_HEADERS: Final = frozenset(
    {
        *("host", "accept", "accept-encoding", "connection", "content-type", "content-length"),
        *("transfer-encoding", "te", "trailer", "upgrade", "expect", "keep-alive"),
    }
)
_PIN: Final = re.compile(r"sha256:([0-9a-f]{64})", re.ASCII)
_GLOB_HINT: Final = "a text of at most 64 bytes; * stands for any characters, ? for one"


def _url(value: object) -> str:
    """Where a key manager is: https, a host, perhaps a port and a path; without a / at its end."""
    found = fields.text(value)
    hint = "such as https://kme1.example.net:8443"
    try:
        parts = urlsplit(found)
        port = parts.port
    except ValueError:
        raise FieldError(f"{shown(found)} is not a URL", hint) from None
    if parts.scheme == "http":
        raise FieldError(f"{shown(found)} has no TLS", f"keys travel over https alone: {hint}")
    if parts.scheme != "https" or not parts.hostname:
        raise FieldError(f"{shown(found)} is not a URL of https", hint)
    _check_parts(parts)
    # As an endpoint is checked: host names, numeric addresses
    host = parts.hostname
    fields.endpoint(f"[{host}]:{port or 443}" if ":" in host else f"{host}:{port or 443}")
    return found.rstrip("/")


def _check_parts(parts: SplitResult) -> None:
    if parts.username is not None or parts.password is not None:
        raise FieldError(
            "holds a user name or a password", "the certificate says who asks: leave them out"
        )
    if parts.query or parts.fragment or parts.port == 0:
        raise FieldError(
            "is more than host, port and path", "leave out ?… and #…, and port 0: vpnd adds the API"
        )
    if not parts.path.isascii() or " " in parts.path or "//" in parts.path:
        raise FieldError("has a path that cannot be one", "write it percent-encoded, or leave it")


def _secret_file(value: object) -> Path:
    """A file with a secret: a path, or a credential of the daemon's systemd unit."""
    found = fields.text(value)
    if found.startswith(CREDENTIAL):
        name = found.removeprefix(CREDENTIAL)
        if not _CREDENTIAL_NAME.fullmatch(name) or name in (".", ".."):
            raise FieldError(
                "is no name of a credential", "credential:NAME, as LoadCredential= has it"
            )
        return Path(found)
    return fields.absolute_path(value)


def _headers(value: object) -> tuple[tuple[str, Path], ...]:
    """Names of headers, and the files that have what is sent in them."""
    if not isinstance(value, dict):
        raise FieldError(
            f"must be a table, is {kind_of(value)}", 'such as { "X-Api-Key" = "/etc/vpnd/kme/api" }'
        )
    if len(value) > MAX_HEADERS:
        raise FieldError(f"has {len(value)} entries", f"at most {MAX_HEADERS}")
    for name in value:
        if not _HEADER_NAME.fullmatch(str(name)) or str(name).lower() in _OWN_HEADERS:
            raise FieldError(
                f"{shown(str(name))} is no header that can be set",
                "another name: letters, digits, -",
            )
    if len({name.lower() for name in value}) < len(value):
        raise FieldError("names one twice", "each once")
    return tuple(sorted((name, _secret_file(file)) for name, file in value.items()))


def _api_path(value: object) -> str:
    found = fields.text(value)
    if not _API_PATH.fullmatch(found) or "//" in found or {".", ".."} & set(found.split("/")):
        raise FieldError(
            f"{shown(found)} is no path of an API", f'a / first and none last, such as "{API_PATH}"'
        )
    return found


def _pin(value: object) -> str:
    found = fields.text(value).lower().replace(":", "").removeprefix("sha256")
    if not _PIN.fullmatch(f"sha256:{found}"):
        raise FieldError(
            "is not a pin of a certificate",
            "sha256: and the 64 hexadecimal digits that `vpnctl keysource test` shows",
        )
    return found


def _server_name(value: object) -> str:
    found = fields.text(value)
    fields.endpoint(f"[{found}]:443" if ":" in found else f"{found}:443")
    return found


def _name_of_far(value: object) -> str:
    """A KME ID, a name in a certificate: 1 to 64 bytes of printable text."""
    return _name_of_at_most(value, MAX_NAME_LENGTH)


def _sae(value: object) -> str:
    return _name_of_at_most(value, MAX_SAE_LENGTH)


def _name_of_at_most(value: object, most: int) -> str:
    found = fields.text(value)
    if not 0 < len(found.encode()) <= most:
        raise FieldError(f"has {len(found.encode())} bytes", f"1 to {most}: it is told the far end")
    return no_step_of_a_path(found)


def _psk_identity(value: object) -> str:
    found = fields.text(value)
    if not 0 < len(found.encode()) <= MAX_PSK_IDENTITY:
        raise FieldError(f"has {len(found.encode())} bytes", f"1 to {MAX_PSK_IDENTITY}")
    return found


def _glob(value: object) -> str:
    found = fields.text(value)
    if not 0 < len(found.encode()) <= MAX_NAME_LENGTH:
        raise FieldError(f"has {len(found.encode())} bytes", _GLOB_HINT)
    return found


def _seconds(low: float, high: float) -> Callable[[object], float]:
    def parse(value: object) -> float:
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise FieldError(
                f"must be a number, is {kind_of(value)}", f"{low:g} to {high:g} seconds"
            )
        if not (math.isfinite(value) if isinstance(value, float) else True) or not (
            low <= value <= high
        ):
            raise FieldError("is out of range", f"{low:g} to {high:g} seconds")
        return float(value)

    return parse


def _key_bits(value: object) -> int:
    low, high = MIN_KEY_LENGTH * 8, MAX_KEY_LENGTH * 8
    bits = fields.whole_number(low, high, "bits")(value)
    if bits % 8:
        raise FieldError(f"{bits} bits are no whole bytes", "a multiple of 8, such as 256")
    return bits


def _quirk(value: object) -> str:
    found = fields.text(value)
    if found not in QUIRKS:
        known = ", ".join(QUIRKS)
        raise FieldError(
            f"{shown(found)} is not known", f"{did_you_mean(found, QUIRKS)}known here: {known}"
        )
    return found


def _sorted(items: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(set(items)))


def _true_or_false(value: object) -> bool:
    if not isinstance(value, bool):
        raise FieldError(f"must be true or false, is {kind_of(value)}", "without quotes")
    return value


def _list_of_one(value: object) -> object:
    return [value] if isinstance(value, str) else value


def _some(limit: int) -> Any:
    def check(items: tuple[str, ...]) -> tuple[str, ...]:
        if not items:
            raise FieldError("is empty", "at least one entry is needed")
        if len(items) > limit:
            raise FieldError(f"has {len(items)} entries", f"at most {limit}")
        if len(set(items)) < len(items):
            raise FieldError("names one twice", "each once")
        return items

    return AfterValidator(check)


FarName = Annotated[str, PlainValidator(_name_of_far)]
Flag = Annotated[bool, PlainValidator(_true_or_false)]


class RemoteSourceConfig(Table):
    """What all sources have that are asked over HTTPS."""

    urls: Annotated[
        tuple[Annotated[str, PlainValidator(_url)], ...],
        BeforeValidator(_list_of_one),
        _some(MAX_ADDRESSES),
    ]
    """Asked in this order: the next where one cannot be reached."""
    ca: AbsolutePath | None
    """PEM: who signed the key manager's certificate. The system's own CAs are not believed."""
    certificate: AbsolutePath | None = None
    """PEM: this end's certificate, and what is between it and its CA; None where the server asks
    for none."""
    key: AbsolutePath | None = None
    """PEM, not encrypted, mode 0600."""
    bearer_token: Annotated[Path, PlainValidator(_secret_file)] | None = None
    """The file of a token that is sent as Authorization: Bearer."""
    headers: Annotated[tuple[tuple[str, Path], ...], PlainValidator(_headers)] = ()
    """Other headers, and the files of what is sent in them."""
    server_name: Annotated[str, PlainValidator(_server_name)] | None = None
    """The name in the key manager's certificate, where it is not the URL's host."""
    pin: Annotated[
        tuple[Annotated[str, PlainValidator(_pin)], ...], BeforeValidator(_list_of_one)
    ] = ()
    """SHA-256 of the DER of the key manager's certificate, in hex; of one of several."""
    check_name: Flag = True
    """Whether its certificate must be of the URL's host, or server_name; if not, `pin` decides."""
    kme_name: Annotated[tuple[FarName, ...], BeforeValidator(_list_of_one)] = ()
    """A name that must stand in its certificate: common name, or a subject alternative name."""
    key_size: Annotated[int, PlainValidator(_key_bits)] = 256
    """Bits of each key that is mixed."""
    connect_timeout: Annotated[float, PlainValidator(_seconds(0.1, 30))] = 3.0
    """Seconds, for TCP and TLS each."""
    read_timeout: Annotated[float, PlainValidator(_seconds(0.1, 30))] = 25.0
    """Seconds without a byte of the answer."""
    call_timeout: Annotated[float, PlainValidator(_seconds(0.1, 30))] = 28.0
    """Seconds for a call to one address, from its beginning to the answer's last byte."""
    max_keys_per_minute: Annotated[int, PlainValidator(fields.whole_number(1, 60_000))] = 600
    """Keys that this node asks for anew; in a burst as many."""
    prefetch: Flag = True
    """Fetch the key for a renewal shortly before it is due."""

    @model_validator(mode="after")
    def _shows_itself(self) -> Self:
        if (self.certificate is None) != (self.key is None):
            there, missing = ("certificate", "key") if self.key is None else ("key", "certificate")
            raise FieldError(
                f"has {there} without {missing}",
                "both; or neither, where the key manager asks for no client certificate",
            )
        if not self.check_name and not self.pin:
            raise FieldError(
                "has check_name = false without a pin",
                "`pin` says then whose certificate it has to be: `vpnctl keysource test` shows it",
            )
        if self.bearer_token and "authorization" in {name.lower() for name, _ in self.headers}:
            raise FieldError("has bearer_token, and a header Authorization", "one of the two")
        return self


class QkdSourceConfig(RemoteSourceConfig):
    """`type = "qkd"`: a key manager after ETSI GS QKD 014 V1.1.1."""

    type: Literal["qkd"]
    ca: AbsolutePath
    sae: Annotated[str, PlainValidator(_sae)]
    """This end's SAE ID."""
    verbs: Annotated[Literal["post", "get"], PlainValidator(fields.choice("post", "get"))] = "post"
    """"get" where the key manager has only that."""
    api_path: Annotated[str, PlainValidator(_api_path)] = API_PATH
    """What stands before the SAE ID in its paths."""
    kme_id: Annotated[tuple[FarName, ...], BeforeValidator(_list_of_one)] = ()
    """What `source_KME_ID` in its status must be; one of several."""
    low_water: Annotated[int, PlainValidator(fields.whole_number(0, 10**9, "keys"))] | None = None
    """Keys for one far end, at or below which it is told; None: a tenth of the capacity."""
    quirks: Annotated[
        tuple[Annotated[str, PlainValidator(_quirk)], ...], AfterValidator(_sorted)
    ] = ()

    @model_validator(mode="after")
    def _fits(self) -> QkdSourceConfig:
        if "no-status" in self.quirks and self.kme_id:
            raise FieldError(
                'has kme_id, and the quirk "no-status"', "without a status there is no KME ID"
            )
        if any(urlsplit(url).path.endswith(self.api_path) for url in self.urls):
            raise FieldError(
                f"has urls that end with {self.api_path}", "leave that out: vpnd adds api_path"
            )
        return self


class SkipSourceConfig(RemoteSourceConfig):
    """`type = "skip"`: a key provider after draft-cisco-skip."""

    type: Literal["skip"]
    ca: AbsolutePath | None = None
    psk: Annotated[Path, PlainValidator(_secret_file)] | None = None
    """The file of a pre-shared key: TLS with that, and without certificates."""
    psk_identity: Annotated[str, PlainValidator(_psk_identity)] | None = None
    """Under which name the provider knows it."""
    local_system_id: Annotated[str, PlainValidator(_glob)] = "*"
    """What the provider's `localSystemID` must match."""

    @model_validator(mode="after")
    def _shows_one_thing(self) -> Self:
        if (self.psk is None) != (self.psk_identity is None):
            raise FieldError("has one of psk and psk_identity", "both, or neither")
        if self.psk is None and self.ca is None:
            raise FieldError("has neither ca nor psk", "certificates, or a pre-shared key")
        of_certificates = [
            key
            for key in ("ca", "certificate", "key", "pin", "kme_name", "server_name")
            if getattr(self, key)
        ]
        if self.psk is not None and (of_certificates or not self.check_name):
            raise FieldError(
                f"has psk and {', '.join(of_certificates) or 'check_name'}",
                "with a pre-shared key there are no certificates",
            )
        return self


class FileSourceConfig(Table):
    """`type = "file"`: a file with a key that two sites share."""

    type: Literal["file"]
    file: AbsolutePath
    """Mode 0600; 32 to 1,024 bytes, or as many in hexadecimal digits or Base64."""


KeySourceConfig = QkdSourceConfig | SkipSourceConfig | FileSourceConfig

_TYPES: Final[
    dict[str, type[QkdSourceConfig] | type[SkipSourceConfig] | type[FileSourceConfig]]
] = {
    "qkd": QkdSourceConfig,
    "skip": SkipSourceConfig,
    "file": FileSourceConfig,
}


def key_source_config(values: object, source: Source, at: Location) -> KeySourceConfig:
    """A key source from its table; ConfigErrors with all that is wrong with it."""
    written = values.get("type") if isinstance(values, dict) else None
    if isinstance(written, str) and written in _TYPES:
        found: KeySourceConfig = validate(_TYPES[written], values, source, at)
        return found
    return validate(_AnySource, values, source, at)  # type: ignore[return-value]  # it always raises


def files_of(config: RemoteSourceConfig | FileSourceConfig) -> dict[str, Path]:
    """The files that a source names, by key."""
    if isinstance(config, FileSourceConfig):
        return {"file": config.file}
    found = {
        "ca": config.ca,
        "certificate": config.certificate,
        "key": config.key,
        "psk": config.psk if isinstance(config, SkipSourceConfig) else None,
        "bearer_token": config.bearer_token,
        **{f"headers.{name}": file for name, file in config.headers},
    }
    return {key: file for key, file in found.items() if file is not None}


class _AnySource(Table):
    """A table whose `type` is missing or unknown: that is all that can be said about it."""

    type: Annotated[str, PlainValidator(fields.choice(*_TYPES))]
    model_config = ConfigDict(extra="ignore")
