"""What a site's daemon has recorded: the JSON lines of its log, from a moment on.

since = log_end(site)
...
await wait_record(site, since, "fallback_started", peer="par")
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable
from typing import Any, Final

import trio

from vpnd_lab.errors import WaitTimeout
from vpnd_lab.patience import patient
from vpnd_lab.site import Site

Record = dict[str, Any]
_LOOK_SECONDS: Final = 0.1


def log_end(site: Site) -> int:
    """Where its log ends now, in bytes."""
    return site.daemon_log.stat().st_size


def records(site: Site, since: int = 0) -> list[Record]:
    """What its daemons recorded from this byte of the log on; other lines are left out."""
    with site.daemon_log.open("rb") as file:
        file.seek(since)
        lines = file.read().decode(errors="replace").splitlines()
    found = []
    for line in lines:
        with contextlib.suppress(ValueError):
            record = json.loads(line)
            if isinstance(record, dict):
                found.append(record)
    return found


def matching(found: Iterable[Record], event: str, **fields: object) -> list[Record]:
    """Those of a kind; a field that is given as a text has to be *in* the record's own."""

    def fits(record: Record) -> bool:
        return record.get("event") == event and all(
            value in str(record.get(name, ""))
            if isinstance(value, str)
            else record.get(name) == value
            for name, value in fields.items()
        )

    return [record for record in found if fits(record)]


async def wait_record(
    site: Site, since: int, event: str, *, seconds: float = 60, **fields: Any
) -> Record:
    """The first such record; raises WaitTimeout with what there was instead."""
    with trio.move_on_after(patient(seconds)):
        while True:
            if found := matching(records(site, since), event, **fields):
                return found[0]
            await trio.sleep(_LOOK_SECONDS)
    said = "\n".join(json.dumps(record) for record in records(site, since))
    raise WaitTimeout(
        f"{site.name}: no {event} with {fields} in {seconds:g} s; there was:\n{said or 'nothing'}"
    )
