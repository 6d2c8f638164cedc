"""What happens to key sources, as records like all others."""

from __future__ import annotations

from vpnd.journal import Journal


class SourceJournal:
    """The sources' listener (vpnd.keysource.base.SourceListener)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def source_event(
        self, event: str, source: str, *, level: str, reason: str, code: str, link: str = ""
    ) -> None:
        self._journal.record(
            event,
            peer=link or None,
            level=level,
            source=source,
            reason=reason,
            code=code or None,
        )
