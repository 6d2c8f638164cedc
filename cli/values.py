"""What may stand in a flag: each reader takes the text as typed and returns the value.

A wrong one raises `Wrong` with what to write instead. The daemon checks everything again: this is
for the person at the keyboard, who hears of it at once, of all flags together, and without a
daemon. Names the daemon knows (peers, tunnels) are left to the daemon.
"""

import re
from collections.abc import Callable, Iterable
from typing import Final, TypeVar

from cli.errors import Problem, UsageProblem

Value = TypeVar("Value")

_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_INTERFACE: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.=+-]{0,14}")
_HOST: Final = re.compile(r"(?!-)[A-Za-z0-9_-]{1,63}(?:\.[A-Za-z0-9_-]{1,63})*\.?")

MAX_WAIT_SECONDS: Final = 86_400


class Wrong(Exception):
    """A value that cannot be taken; `hint` says what can."""

    def __init__(self, reason: str, hint: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.hint = hint


class Flags:
    """Reads one flag after another and keeps what was wrong, to tell it all at once."""

    def __init__(self) -> None:
        self._problems: list[Problem] = []

    def read(self, flag: str, reader: Callable[[str], Value], text: str) -> Value | None:
        """`reader(text)`, or None when that was wrong; `check()` before the value is used."""
        try:
            return reader(text)
        except Wrong as wrong:
            self.problem(f"{flag} {text!r}: {wrong.reason}", wrong.hint)
            return None

    def read_list(
        self, flag: str, reader: Callable[[str], Value], texts: Iterable[str]
    ) -> list[Value]:
        """Every entry of a flag that is repeated, or holds several with commas between."""
        entries = [entry.strip() for text in texts for entry in text.split(",")]
        if entries and not any(entries):
            self.problem(f"{flag} is empty", "leave the flag out or give it a value")
        values = (self.read(flag, reader, entry) for entry in entries if entry)
        return [value for value in values if value is not None]

    def problem(self, message: str, hint: str) -> None:
        self._problems.append(Problem(message, hint))

    def check(self) -> None:
        """Raises UsageProblem with everything that was wrong so far."""
        if self._problems:
            raise UsageProblem.of(self._problems)


def name(text: str) -> str:
    """A peer's, a node's or a tunnel's name: it becomes part of a file name and of a path."""
    if not _NAME.fullmatch(text):
        raise Wrong(
            "not a name",
            "letters, digits, '-', '_' and '.', at most 63, beginning with a letter or a digit: "
            "fra1",
        )
    return text


def interface(text: str) -> str:
    """A network interface's name (Linux: at most 15 bytes)."""
    if not _INTERFACE.fullmatch(text) or text in {"all", "default"}:
        raise Wrong(
            "not an interface name",
            "at most 15 letters, digits, '-', '_' and '.': wg-backbone",
        )
    return text


def port(text: str) -> int:
    return _integer(text, 1, 65_535, "a UDP port", "51820")


def keepalive(text: str) -> int:
    """Seconds between WireGuard's keepalives, 0 for none."""
    return _integer(text, 0, 65_535, "a keepalive in seconds", "25, or 0 for none")


def suite(text: str) -> int:
    if text not in ("1", "2"):
        raise Wrong("not a suite", "1 (ML-KEM-768 with X25519) or 2 (ML-KEM-1024 with P-384)")
    return int(text)


def backend(text: str) -> str:
    return _one_of(text, ("auto", "kernel", "userspace"), "a backend")


def shell(text: str) -> str:
    return _one_of(text, ("bash", "zsh", "fish"), "a shell with completion")


def wait_seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 < seconds <= MAX_WAIT_SECONDS:  # also false for NaN
        raise Wrong("not a time in seconds", f"a number up to {MAX_WAIT_SECONDS}, for example 10")
    return seconds


def endpoint(text: str) -> str:
    """`host:port`, `name:port` or `[v6]:port`; where the key exchange is sent to."""
    host, bracketed = _split_endpoint(text, "fra1.example.net:51821 or [2001:db8::1]:51821")
    if bracketed:
        _address(host, 6, "[2001:db8::1]:51821")
    elif re.fullmatch(r"[0-9.]+", host):
        _address(host, 4, "192.0.2.1:51821")
    elif not _HOST.fullmatch(host) or len(host) > 253:
        raise Wrong(f"{host!r} is neither a host name nor an address", "fra1.example.net:51821")
    return text


def listen(text: str) -> str:
    """An address of this host and a port: `[::]:51821`."""
    example = "[::]:51821 or 0.0.0.0:51821"
    host, bracketed = _split_endpoint(text, example)
    _address(host, 6 if bracketed else 4, example)
    return text


def prefix(text: str) -> str:
    """An IPv4 or IPv6 prefix without host bits, in canonical form; a bare address is a host's."""
    import ipaddress

    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        pass
    try:
        meant = ipaddress.ip_network(text, strict=False)
    except ValueError as failure:
        raise Wrong("not a prefix", "10.20.0.0/16 or fd00:20::/48") from failure
    raise Wrong("an address within a prefix, not a prefix", f"{meant}")


def address(text: str) -> str:
    """An address of the tunnel's interface, with its prefix length."""
    import ipaddress

    example = "10.255.0.1/24 or fd00:255::1/64"
    if "/" not in text:
        raise Wrong("an address needs a prefix length here", example)
    try:
        parsed = ipaddress.ip_interface(text)
    except ValueError as failure:
        raise Wrong("not an address with a prefix length", example) from failure
    if parsed.is_multicast or parsed.is_unspecified or parsed.is_loopback:
        raise Wrong("not an address that an interface can have", example)
    return str(parsed)


def identity(text: str) -> str:
    """A fingerprint's text form, `vpnd1…`, whose checksum says whether it was typed right."""
    from kex.errors import InvalidIdentity
    from kex.identity import Fingerprint

    try:
        return Fingerprint.parse(text).text()
    except InvalidIdentity as failure:
        raise Wrong(
            str(failure), failure.hint or "`vpnctl id` at the far end prints it: copy all of it"
        ) from failure


def host_prefix(interface_address: str) -> str:
    """The prefix that holds this one address: what a far end allows. `10.0.0.1/24`: `/32`."""
    import ipaddress

    return str(ipaddress.ip_network(ipaddress.ip_interface(interface_address).ip))


def _integer(text: str, low: int, high: int, what: str, example: str) -> int:
    # Not int() alone: that takes "1_000", " 7" and digits of every script.
    value = int(text) if re.fullmatch(r"[0-9]{1,9}", text) else -1
    if not low <= value <= high:
        raise Wrong(f"not {what}", f"a whole number from {low} to {high}: {example}")
    return value


def _one_of(text: str, choices: tuple[str, ...], what: str) -> str:
    if text not in choices:
        raise Wrong(f"not {what}", f"one of {', '.join(choices)}")
    return text


def _split_endpoint(text: str, example: str) -> tuple[str, bool]:
    """The host, and whether it stood in brackets."""
    host, colon, number = text.rpartition(":")
    if not colon or not host:
        raise Wrong("the port is missing", example)
    if not re.fullmatch(r"[0-9]{1,5}", number) or not 1 <= int(number) <= 65_535:
        raise Wrong(f"{number!r} is not a port", f"{host}:51821")
    if host.startswith("[") and host.endswith("]"):
        return host[1:-1], True
    if ":" in host:
        raise Wrong("an IPv6 address needs brackets", f"[{host}]:{number}")
    return host, False


def _address(host: str, version: int, example: str) -> None:
    import ipaddress

    try:
        parsed = ipaddress.ip_address(host)
    except ValueError as failure:
        raise Wrong(f"{host!r} is not an IPv{version} address", example) from failure
    if parsed.version != version:
        raise Wrong(f"{host!r} is not an IPv{version} address", example)
