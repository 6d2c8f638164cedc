"""A static key in a file that two sites share, as a key source (the idea of RFC 8784)."""

from __future__ import annotations

from collections.abc import Sequence

import trio

from kex.external import ExternalKey, ExternalKeyReference
from kex.secret import Secret
from vpnd.config_key_sources import FileSourceConfig
from vpnd.file_trust import FileFault
from vpnd.keysource.base import (
    Correspondent,
    ProbeStep,
    SourceError,
    SourceFault,
    SourceListener,
    SourceStatus,
    SourceType,
)
from vpnd.keysource.health import Health
from vpnd.keysource.static_key import key_hash, read_static_key


class FileSource:
    """The key as it was when the configuration was read: a reload takes it anew."""

    def __init__(self, name: str, config: FileSourceConfig, listener: SourceListener) -> None:
        self._name = name
        self.config = config
        self._health = Health(name, listener)
        self._key: Secret | None = None
        self._hash = ""
        self._fault: FileFault | None = None
        self.read()

    @property
    def name(self) -> str:
        return self._name

    @property
    def source_type(self) -> SourceType:
        return SourceType.FILE

    def read(self) -> bool:
        """Take the file as it is now; whether there is another key in it than before.

        A file that cannot be used any more leaves no key: that is how one is withdrawn.
        """
        before = self._hash
        try:
            self._key = read_static_key(self.config.file)
        except FileFault as fault:
            self._key, self._hash, self._fault = None, "", fault
            self._health.failed(self._no_key())
        else:
            self._hash, self._fault = key_hash(self._key), None
            self._health.succeeded()
        return self._hash != before

    async def obtain(self, far: Correspondent, *, fresh: bool = False) -> ExternalKey:
        await trio.lowlevel.checkpoint()
        key = self._there(far)
        reference = ExternalKeyReference(SourceType.FILE.value, "", "", (self._hash,), len(key) * 8)
        self._health.counters["obtained"] += 1
        return ExternalKey(reference, key)

    async def retrieve(self, far: Correspondent, reference: ExternalKeyReference) -> Secret:
        await trio.lowlevel.checkpoint()
        key = self._there(far)
        if reference.key_ids != (self._hash,) or reference.bits != len(key) * 8:
            theirs = ", ".join(reference.key_ids) or "none"
            error = SourceError(
                self._name,
                SourceFault.MISMATCH,
                f"{self.config.file}: this end's key has the hash {self._hash}, the far end's "
                f"{theirs}",
                "copy the file from one end to the other, over a channel that keeps it secret, "
                "and reload both",
            )
            self._health.failed(error, far=far.link, link=far.link)
            raise error
        self._health.succeeded(far=far.link, link=far.link)
        self._health.counters["retrieved"] += 1
        return key

    def serves(self, far: Correspondent, reference: ExternalKeyReference) -> bool:
        return (
            reference.source_type == SourceType.FILE.value
            and bool(self._hash)
            and reference.key_ids == (self._hash,)
        )

    def status(self) -> SourceStatus:
        trouble = self._health.trouble
        return SourceStatus(
            name=self._name,
            source_type=SourceType.FILE,
            address=str(self.config.file),
            identity=self._hash,
            available=self._key is not None,
            fault=None if trouble is None else trouble.fault,
            reason="" if trouble is None else trouble.reason,
            hint="" if trouble is None else trouble.hint,
            since_wall=0.0 if trouble is None else trouble.since_wall,
            counters=dict(self._health.counters),
        )

    async def refresh_status(self) -> None:
        """Whether there is a key. Raises SourceError."""
        await trio.lowlevel.checkpoint()
        self._there(None)

    async def probe(self, far: Correspondent | None) -> Sequence[ProbeStep]:
        """The file as it is on disk now, which may be newer than the key in use."""
        try:
            key = await trio.to_thread.run_sync(read_static_key, self.config.file)
        except FileFault as fault:
            return [ProbeStep("file", False, f"{fault.path} {fault.reason}", fault.hint)]
        found = key_hash(key)
        if found != self._hash:
            detail = f"the file has {found}, in use is {self._hash or 'none'}"
            return [ProbeStep("file", False, detail, "`vpnctl reload` takes it")]
        return [ProbeStep("file", True, f"{len(key) * 8} bits, hash {found}")]

    async def run(self) -> None:
        """Nothing to do."""
        await trio.sleep_forever()

    def _there(self, far: Correspondent | None) -> Secret:
        if self._key is None:
            raise self._no_key()
        return self._key

    def _no_key(self) -> SourceError:
        fault = self._fault
        reason = "cannot be read" if fault is None else fault.reason
        hint = "" if fault is None else fault.hint
        return SourceError(self._name, SourceFault.FILE, f"{self.config.file} {reason}", hint)
