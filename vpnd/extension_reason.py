"""Why somebody extends a fallback: the text that stands in the log."""

from __future__ import annotations

from vpnd import config_fields as fields
from vpnd.config_fields import FieldError
from vpnd.fallback import MAX_REASON_LENGTH


def extension_reason(value: object) -> str:
    """Printable, and not empty."""
    found = fields.text(value).strip()
    if not 0 < len(found) <= MAX_REASON_LENGTH:
        raise FieldError(
            f"has {len(found)} characters", f"1 to {MAX_REASON_LENGTH}: why it is extended"
        )
    return found
