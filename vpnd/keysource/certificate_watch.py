"""Certificates of a source: when they expire, and what is told of that.

A certificate is told of 30, 7 and 1 days ahead, once each, whether it is this end's, one of the CA
file, or what the key manager showed last.
"""

from __future__ import annotations

from typing import Final

import trio

from vpnd.clock import wall
from vpnd.file_trust import FileFault
from vpnd.keysource.base import Certificate, SourceFault
from vpnd.keysource.files import day
from vpnd.keysource.health import Health
from vpnd.keysource.key_manager import KeyManager

WARN_DAYS: Final = (1, 7, 30)
WATCH_SECONDS: Final = 60.0
"""Between two looks at files and dates."""

_DAY: Final = 86_400.0


class CertificateWatch:
    """Of one source."""

    def __init__(self, manager: KeyManager, health: Health) -> None:
        self._manager = manager
        self._health = health
        self._told: set[tuple[str, int]] = set()
        self._own: str | None = None
        """SHA-256 of this end's certificate, as it was last seen."""
        self._told_fault = ""

    def certificates(self) -> list[Certificate]:
        loaded = self._manager.files.loaded
        own = [] if loaded is None else [*filter(None, [loaded.own]), *loaded.authorities]
        shown = {one.sha256: one for one in self._manager.shown.values()}
        return [*own, *shown.values()]

    def warnings(self) -> list[str]:
        found = [text for one in self.certificates() if (text := _warning(one, wall())) is not None]
        fault = self._manager.files.fault
        if fault is not None and self._manager.files.loaded is not None:
            found.append(f"{fault.path} {fault.reason}; what was there before is still in use")
        return found

    async def run(self) -> None:
        while True:
            await self.look()
            await trio.sleep(WATCH_SECONDS)

    async def look(self) -> None:
        """Take up what is new on disk, and tell what has to be told."""
        try:
            found = await self._manager.files.current()
        except FileFault:
            found = None  # whoever asks for a key is told; so is `vpnctl keysource list`
        own = None if found is None else found.own
        if own is not None:
            if self._own is not None and self._own != own.sha256:
                self._health.tell(
                    "source_certificate_renewed",
                    level="info",
                    reason=f"{own.subject}, until {day(own.not_after)}, is in use from now on",
                )
            self._own = own.sha256
        self._tell_fault()
        for one in self.certificates():
            self._tell_expiry(one)

    def _tell_fault(self) -> None:
        fault = self._manager.files.fault
        text = "" if fault is None else f"{fault.path} {fault.reason}"
        if text and text != self._told_fault:
            loaded = self._manager.files.loaded
            still = "what was there before is in use" if loaded else "none is in use"
            self._health.tell(
                "source_certificate_unusable",
                level="warning",
                reason=f"{text}; {still}",
                code=SourceFault.FILE.value,
            )
        self._told_fault = text

    def _tell_expiry(self, one: Certificate) -> None:
        days = (one.not_after - wall()) / _DAY
        mark = next((mark for mark in WARN_DAYS if days <= mark), None)
        if mark is None or (one.sha256, mark) in self._told:
            return
        # A daemon that starts 3 days ahead tells once, not for 30 and 7 days both
        self._told |= {(one.sha256, each) for each in WARN_DAYS if each >= mark}
        text = _warning(one, wall())
        self._health.tell(
            "source_certificate_expires",
            level="error" if days <= 1 else "warning",
            reason=text or "",
            code=SourceFault.CERTIFICATE.value,
        )


def _warning(one: Certificate, now: float) -> str | None:
    left = (one.not_after - now) / _DAY
    if left > max(WARN_DAYS):
        return None
    who = {"client": "this end's certificate", "server": "the key manager's certificate"}.get(
        one.what, f"{one.what} certificate"
    )
    until = day(one.not_after)
    if left <= 0:
        return f"{who} {one.subject} has expired ({until})"
    return f"{who} {one.subject} expires in {int(left)} days ({until})"
