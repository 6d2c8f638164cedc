"""A key manager as a source asks it: addresses with fail-over, certificates, limits in number.

`ask` goes from one address to the next only where the one before surely has not handed the key
out: where the request did not leave, or the answer says so.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Final, TypeVar

import trio
from cryptography import x509
from cryptography.x509.oid import NameOID

from vpnd.clock import wall
from vpnd.config_errors import printable
from vpnd.config_key_sources import RemoteSourceConfig, SkipSourceConfig
from vpnd.file_trust import FileFault
from vpnd.keysource.addresses import Address, Addresses
from vpnd.keysource.base import Certificate, SourceError, SourceFault
from vpnd.keysource.call_failed import CallFailed, Limits, Progress
from vpnd.keysource.credential_files import CredentialFiles
from vpnd.keysource.credentials import Credentials, certificate_of
from vpnd.keysource.files import day
from vpnd.keysource.https_call import Answer, Request, call, handshake

AT_ONCE: Final = 16
"""Calls of one kind that run side by side; the others wait."""
ELSEWHERE: Final = frozenset({SourceFault.UNAVAILABLE, SourceFault.EMPTY, SourceFault.UNKNOWN_KEY})
"""Answers after which the next address may have what this one has not."""

T = TypeVar("T")


class BadAnswer(Exception):
    """An answer that gives nothing. `undelivered`: it says itself that no key left the pool."""

    def __init__(
        self, fault: SourceFault, reason: str, hint: str = "", *, undelivered: bool = False
    ) -> None:
        super().__init__(reason)
        self.fault = fault
        self.reason = reason
        self.hint = hint
        self.undelivered = undelivered


class AskFailed(SourceError):
    """Nothing was had. `consumed`: a key may have left the pool all the same."""

    consumed = False
    status = 0
    """Of the answer in HTTP; 0 without one."""


class KeyManager:
    """The far side of one source."""

    def __init__(self, name: str, config: RemoteSourceConfig, what: str) -> None:
        self.name = name
        self._config = config
        self._what = what
        """What it is called in messages: KME, key provider."""
        self.addresses = Addresses(config.urls)
        self.files = CredentialFiles(config)
        self._last_failure: AskFailed | None = None
        self.shown: dict[str, Certificate] = {}
        """By address: the certificate that it showed last."""
        self._limits = Limits(
            connect=config.connect_timeout, read=config.read_timeout, call=config.call_timeout
        )

    async def ask(
        self,
        request: Request,
        read: Callable[[Answer, Address], T],
        *,
        room: trio.CapacityLimiter,
        about_to_ask: Callable[[], None] = lambda: None,
    ) -> T:
        """Ask until one address gives what `read` takes. Raises AskFailed.

        `read` raises BadAnswer for what cannot be used. `about_to_ask` is called before anything
        can have been handed out.
        """
        async with room:
            credentials = await self._credentials()
            failed: AskFailed | None = None
            for address in self.addresses.candidates():
                async with address.turn() as may:
                    if not may:
                        continue
                    about_to_ask()
                    try:
                        return await self._ask_one(address, request, credentials, read)
                    except _NextAddress as next_one:
                        failed = next_one.failed
            raise failed or self._resting(request)

    async def _ask_one(
        self,
        address: Address,
        request: Request,
        credentials: Credentials,
        read: Callable[[Answer, Address], T],
    ) -> T:
        try:
            answer = await self._call(address, request, credentials, self.progress(address))
        except CallFailed as failed:
            if failed.fault is SourceFault.BAD_ANSWER:
                address.busy()
            else:
                address.failed()
            error = self._error(address, request, failed)
            error.consumed = failed.reached
            if failed.reached:
                raise error from None
            raise _NextAddress(error) from None
        try:
            found = read(answer, address)
        except BadAnswer as bad:
            if answer.status >= 500 or bad.fault is SourceFault.UNAVAILABLE:
                address.busy()
            else:
                self.addresses.answered(address)
            error = self._error(address, request, bad)
            error.consumed = not bad.undelivered
            error.status = answer.status
            if bad.undelivered and bad.fault in ELSEWHERE:
                raise _NextAddress(error) from None
            raise error from None
        finally:
            answer.wipe()
        self.addresses.answered(address)
        return found

    def progress(self, address: Address) -> Progress:
        """How far a call comes; it is given to `examine`."""
        return Progress(lambda der: self._check(address, der))

    async def examine(
        self,
        address: Address,
        request: Request | None,
        read: Callable[[Answer, Address], T],
        watch: Progress,
    ) -> T | None:
        """One call to this address, for a test: whether or not it rests, and without a
        consequence for it, unless all is well. None: TCP and TLS alone. Raises AskFailed."""
        credentials = await self._credentials()
        asked = request or Request("connection", "")
        try:
            if request is None:
                await self._handshake(address, credentials, watch)
                return None
            answer = await self._call(address, request, credentials, watch)
        except CallFailed as failed:
            raise self._error(address, asked, failed, kept=False) from None
        try:
            found = read(answer, address)
        except BadAnswer as bad:
            raise self._error(address, asked, bad, kept=False) from None
        finally:
            answer.wipe()
        self.addresses.answered(address)
        return found

    async def _call(
        self, address: Address, request: Request, credentials: Credentials, watch: Progress
    ) -> Answer:
        """Raises CallFailed."""
        try:
            return await call(
                address.url,
                request,
                context=self._context(credentials),
                limits=self._limits,
                server_name=self._config.server_name,
                watch=watch,
                headers=credentials.headers,
            )
        except CallFailed as failed:
            if failed.of_another_name:
                await self._tell_names(address, credentials, failed)
            raise

    def _context(self, credentials: Credentials) -> ssl.SSLContext:
        # Without the check of the name there is a pin: the configuration sees to that
        return credentials.context if self._config.check_name else credentials.any_name

    async def _handshake(self, address: Address, credentials: Credentials, watch: Progress) -> None:
        """Raises CallFailed."""
        try:
            await handshake(
                address.url,
                context=self._context(credentials),
                limits=self._limits,
                server_name=self._config.server_name,
                watch=watch,
            )
        except CallFailed as failed:
            if failed.of_another_name:
                await self._tell_names(address, credentials, failed)
            raise

    async def _tell_names(
        self, address: Address, credentials: Credentials, failed: CallFailed
    ) -> None:
        """Add to a failure which names the certificate has. OpenSSL shows none that it refuses:
        so there is another handshake, in which all but the name is checked, and nothing asked."""
        shown: list[x509.Certificate] = []
        watch = Progress(lambda der: shown.append(x509.load_der_x509_certificate(der)))
        try:
            await handshake(
                address.url,
                context=credentials.any_name,
                limits=self._limits,
                server_name=self._config.server_name,
                watch=watch,
            )
        except (CallFailed, ValueError):
            return
        common, others = names_in(shown[0]), alternative_names(shown[0])
        if others:
            failed.reason += f"; it has {_few(others)}"
        else:
            failed.reason += (
                f"; it has no subject alternative name, but the common name {_few(common)}"
            )
            failed.hint = (
                "have it made anew with a subject alternative name; or pin it, and set "
                "check_name = false"
            )

    async def _credentials(self) -> Credentials:
        """What is shown, and believed, now. Raises AskFailed."""
        try:
            found = await self.files.current()
        except FileFault as fault:
            raise AskFailed(
                self.name, SourceFault.FILE, f"{fault.path} {fault.reason}", fault.hint
            ) from None
        own = found.own
        if own is None:
            return found
        if own.not_after <= wall():
            raise AskFailed(
                self.name,
                SourceFault.CERTIFICATE,
                f"this end's certificate {self._config.certificate} expired on "
                f"{day(own.not_after)}",
                "replace certificate and key; no restart is needed",
            )
        if found.not_before > wall():
            raise AskFailed(
                self.name,
                SourceFault.CERTIFICATE,
                f"this end's certificate {self._config.certificate} is not valid before "
                f"{day(found.not_before)}",
                "is this host's clock right?",
            )
        return found

    def _check(self, address: Address, der: bytes) -> None:
        """Pin and name, before anything is asked. Raises CallFailed."""
        if isinstance(self._config, SkipSourceConfig) and self._config.psk is not None:
            return  # whoever finished the handshake has the pre-shared key
        try:
            certificate = x509.load_der_x509_certificate(der)
            shown = certificate_of(certificate, "server")
            found = names_in(certificate)
        except ValueError:
            raise CallFailed(
                SourceFault.CERTIFICATE,
                "its certificate is believed by OpenSSL, and cannot be read all the same",
                "have it made anew, after RFC 5280",
            ) from None
        self.shown[address.url] = shown
        if self._config.pin and shown.sha256 not in self._config.pin:
            raise CallFailed(
                SourceFault.CERTIFICATE,
                f"expected the certificate that `pin` names; its own has sha256:{shown.sha256}",
                "if it was renewed, change `pin`; if not, somebody else answers",
            )
        wanted = self._config.kme_name
        if wanted and not {name.lower() for name in wanted} & {name.lower() for name in found}:
            raise CallFailed(
                SourceFault.CERTIFICATE,
                f"expected a certificate of {' or '.join(wanted)}; it is of "
                f"{_few(found) if found else 'nobody'}",
                "is this the right address, and kme_name the name in the certificate?",
            )

    def _error(
        self,
        address: Address,
        request: Request,
        why: CallFailed | BadAnswer,
        *,
        kept: bool = True,
    ) -> AskFailed:
        who = f"{self._what} {address.identity}, " if address.identity else ""
        reason = f"{who}{address.url}, {request.call}: {why.reason}"
        if kept:
            # As one that is never raised: tracebacks keep what functions held, keys too
            self._last_failure = AskFailed(self.name, why.fault, reason, why.hint)
        return AskFailed(self.name, why.fault, reason, why.hint)

    def _resting(self, request: Request) -> AskFailed:
        last = self._last_failure
        return AskFailed(
            self.name,
            SourceFault.UNREACHABLE if last is None else last.fault,
            f"{request.call} is not asked for another {self.addresses.rests():.0f} s, since: "
            f"{'the last call failed' if last is None else last.reason}",
            "" if last is None else last.hint,
        )


class _NextAddress(Exception):
    """The address gave nothing, and handed nothing out."""

    def __init__(self, failed: AskFailed) -> None:
        super().__init__()
        self.failed = failed


def names_in(certificate: x509.Certificate) -> list[str]:
    """The common names and the alternative names (DNS, URI, IP) in a certificate."""
    names = [
        str(found.value)
        for found in certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    ]
    return names + alternative_names(certificate)


def alternative_names(certificate: x509.Certificate) -> list[str]:
    """DNS names, URIs and addresses."""
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, ValueError):
        return []
    return [
        str(one.value)
        for one in alternative.value
        if isinstance(one, (x509.DNSName, x509.UniformResourceIdentifier, x509.IPAddress))
    ]


def _few(names: list[str]) -> str:
    """Names from outside, as a message may hold them."""
    return printable(", ".join(names[:8]), limit=200) or "(none)"
