"""Why a call to a key manager had no answer, and how far it had come."""

from __future__ import annotations

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import httpcore

from vpnd.keysource.base import SourceFault

Checker = Callable[[bytes], None]
"""Looks at a certificate (DER), and raises what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Limits:
    """Seconds."""

    connect: float
    """For TCP and TLS each."""
    read: float
    """Without a byte of the answer."""
    call: float
    """All together."""


class CallFailed(Exception):
    """No answer. `reached` says whether the key manager may have seen the request."""

    def __init__(
        self, fault: SourceFault, reason: str, hint: str = "", *, reached: bool = False
    ) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.hint = hint
        self.reached = reached
        self.of_another_name = False
        """Whether all is well with the certificate but the names in it."""


class Progress:
    """How far a connection came, and who is at its other end."""

    def __init__(self, check: Checker) -> None:
        self.check = check
        self.connected = False
        self.secured = False
        self.version = ""
        """Of TLS."""
        self.asked = False
        self.read = 0
        """Bytes, headers included."""


def header_text(header: bytes) -> str:
    shown = header[:200].decode("latin-1")
    return "".join(c if c.isprintable() else "?" for c in shown)


def timed_out(reason: str, watch: Progress) -> CallFailed:
    hint = (
        "it is slow, or waits for its peer; read_timeout and call_timeout say how long is waited"
        if watch.asked
        else "is it running, and does a firewall let TCP through?"
    )
    return CallFailed(SourceFault.TIMEOUT, reason, hint, reached=watch.asked)


def stage_of(watch: Progress, limits: Limits) -> str:
    if not watch.connected:
        return f"no TCP connection within {limits.connect:g} s"
    return f"no TLS connection within {limits.connect:g} s"


def slow(error: httpcore.TimeoutException, watch: Progress, limits: Limits) -> str:
    if not watch.asked:
        return stage_of(watch, limits)
    what = "taken" if isinstance(error, httpcore.WriteTimeout) else "came"
    return f"not a byte {what} for {limits.read:g} s"


_OF_OUR_CERTIFICATE: Final = (
    "certificate",
    "unknown ca",
    "access denied",
    "handshake failure",
    "decrypt error",
)
"""In OpenSSL's names of alerts: those with which a server refuses a client's certificate."""


def broken(error: Exception, watch: Progress) -> CallFailed:
    """A connection that could not be made, or that broke off."""
    cause = _tls_cause(error)
    if isinstance(cause, ssl.SSLCertVerificationError):
        return _not_verified(cause)
    if isinstance(cause, ssl.SSLError):
        name = (cause.reason or "unknown error").lower().replace("_", " ")
        # TLS 1.3 tells of our certificate when we have asked already: it was not looked at then.
        # Any other alert, or one behind a part of an answer, may come from who has served it
        refused = "alert" in name and (
            not watch.asked or (watch.read == 0 and any(why in name for why in _OF_OUR_CERTIFICATE))
        )
        return CallFailed(
            SourceFault.TLS,
            f"the TLS connection was refused: {name}" if refused else f"no TLS connection: {name}",
            _tls_hint(name, watch, refused=refused),
            reached=watch.asked and not refused,
        )
    if not watch.connected:
        return CallFailed(
            SourceFault.UNREACHABLE,
            f"no TCP connection: {_os_reason(error)}",
            "is it running, is the name right, is there a route?",
        )
    if not watch.secured:
        return CallFailed(
            SourceFault.TLS,
            "the connection broke off during the TLS handshake",
            "is this an https port, and does it know this end's certificate?",
        )
    if isinstance(error, httpcore.ProtocolError) and "complete message body" in str(error):
        return CallFailed(
            SourceFault.BAD_ANSWER,
            "expected a whole answer; it was cut off",
            "its log, or that of a proxy before it, says why",
            reached=True,
        )
    if isinstance(error, httpcore.ProtocolError) and "without sending" not in str(error):
        # h11 quotes behind the colon what it could not read, and that may be a key
        what = str(error).partition(":")[0]
        return CallFailed(
            SourceFault.BAD_ANSWER,
            f"expected HTTP/1.1: {header_text(what.encode('latin-1', 'replace'))}",
            "is this the address of a key manager?",
            reached=True,
        )
    if not watch.asked:
        return CallFailed(
            SourceFault.TLS,
            "the connection broke off before the request was sent",
            "does it know this end's certificate, and the CA of it?",
        )
    return CallFailed(
        SourceFault.TLS,
        "the connection broke off before the answer",
        "its log says why; a certificate that it does not know is one reason",
        reached=True,
    )


_TLS_HINTS: Final = (
    # Parts of OpenSSL's names of alerts and errors, and what they mean for who sets a source up
    (
        ("protocol version", "unsupported protocol", "version too low", "wrong ssl version"),
        "no version of TLS in common: it has TLS 1.1 at most, and 1.2 is the least here (with psk, "
        "the only one)",
    ),
    (
        ("unsupported certificate",),
        "this end's certificate is not made for clients there: have it made anew with the extended "
        "key usage clientAuth, or without any; and with a key that the server supports",
    ),
    (("certificate expired",), "to it, this end's certificate has expired: is its clock right?"),
    (("certificate revoked",), "it holds this end's certificate for revoked: have a new one made"),
    (
        ("certificate required", "peer did not return a certificate"),
        "it wants a client certificate: set `certificate` and `key`",
    ),
    (
        ("unrecognized name",),
        "it has nothing under the name that it is asked for: server_name, or the host in `urls`",
    ),
)


def _tls_hint(name: str, watch: Progress, *, refused: bool) -> str:
    for parts, hint in _TLS_HINTS:
        if any(part in name for part in parts):
            return hint
    if "handshake failure" in name and not watch.secured:
        return (
            "no way of encryption in common, or no certificate that it takes: is it a port for "
            "TLS-PSK (SKIP) alone? Else: does it know this end's certificate, and the CA of it?"
        )
    if refused:
        return "does it know this end's certificate, and the CA of it?"
    return "is this an https port? TLS 1.2 is the least"


def _tls_cause(error: BaseException) -> ssl.SSLError | None:
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, ssl.SSLError):
            return found
        found = found.__cause__ or found.__context__
    return None


_CA_HINT: Final = (
    "`ca` must hold the CA that signed the key manager's certificate, an intermediate one or that "
    "certificate itself"
)
_REISSUE: Final = "have the key manager's certificate made anew, by a CA and with a key of today"
_VERIFY: Final[dict[int, tuple[str, str]]] = {
    # X509_V_ERR_… of OpenSSL
    7: ("has a signature that does not fit its CA", _CA_HINT),
    9: ("is not valid yet", "is this host's clock right, and the key manager's certificate?"),
    10: (
        "has expired",
        "renew the key manager's certificate; or that of its CA, if that one has expired",
    ),
    18: (
        "is signed by itself, and is not in `ca`",
        "if it is the right one, put that certificate itself into `ca`",
    ),
    26: (
        "is not made for servers (its extended key usage says what for)",
        "have it made anew with the extended key usage serverAuth, or without any",
    ),
    66: ("has a key that is too short for OpenSSL (RSA needs 2,048 bits)", _REISSUE),
    67: ("is of a CA whose key is too short for OpenSSL (RSA needs 2,048 bits)", _REISSUE),
    68: ("is signed with a hash that OpenSSL no longer takes (SHA-1, MD5)", _REISSUE),
}
_NOT_A_CA: Final = (
    "is signed by a certificate that may not sign others",
    "its issuer is no CA (basicConstraints CA:FALSE, keyUsage without keyCertSign, or a path that "
    "is too long): have it signed by one; or put the key manager's certificate itself into `ca`",
)
_OTHER_NAME: Final = {62: "is for another name", 64: "is for another address"}
_UNTRUSTED: Final = frozenset({2, 19, 20, 21})
"""No way leads from the certificate to one in `ca`."""


def _not_verified(error: ssl.SSLCertVerificationError) -> CallFailed:
    code = error.verify_code
    said = header_text(error.verify_message.encode())
    if code in _OTHER_NAME:
        failed = CallFailed(
            SourceFault.CERTIFICATE,
            f"its certificate {_OTHER_NAME[code]}",
            "use a subject alternative name of the certificate in `urls`, or set server_name; a "
            "common name alone does not count (RFC 9525)",
        )
        failed.of_another_name = True
        return failed
    if code in (24, 25, 32, 79):
        reason, hint = _NOT_A_CA
    elif code in _UNTRUSTED:
        reason, hint = f"is not of the CA that `ca` names ({said})", _CA_HINT
    else:
        reason, hint = _VERIFY.get(
            code, (f"does not pass OpenSSL's checks ({said})", "have it made anew, after RFC 5280")
        )
    return CallFailed(SourceFault.CERTIFICATE, f"its certificate {reason}", hint)


def _os_reason(error: BaseException) -> str:
    found: BaseException | None = error
    while found is not None:
        nested = getattr(found, "exceptions", ())
        if isinstance(found, OSError) and found.errno:
            # trio writes the address into strerror; a name that is not found has a code < 0
            return os.strerror(found.errno) if found.errno > 0 else str(found.strerror)
        found = nested[0] if nested else (found.__cause__ or found.__context__)
    return "unknown error"
