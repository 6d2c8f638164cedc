"""What happens to key sources, as records like all others."""

from __future__ import annotations

from typing import Any

from vpnd.journal import Journal


class SourceJournal:
    """The sources' listener (vpnd.keysource.base.SourceListener)."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    def source_event(
        self, event: str, source: str, *, level: str, reason: str, code: str, link: str = ""
    ) -> None:
        fields: dict[str, Any] = {"source": source, "reason": reason}
        if code:
            fields["code"] = code
        self._journal.record(event, peer=link or None, level=level, **fields)
