"""What a client may ask about fallbacks and key sources, read and checked."""

from __future__ import annotations

from typing import Any

from vpnd import config_fields as fields
from vpnd.api import (
    MAX_FALLBACK_EXTENSION,
    MAX_REASON_LENGTH,
    MIN_FALLBACK_EXTENSION,
    ErrorCode,
    FallbackExtension,
)
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_fields import FieldError
from vpnd.config_source import Source
from vpnd.node_control import ControlError


def fallback_extension(values: dict[str, Any]) -> FallbackExtension:
    """Seconds and a reason. Raises ConfigErrors with all that is wrong."""
    problems: list[ConfigProblem] = []
    seconds, reason = 0, ""
    try:
        parse = fields.whole_number(MIN_FALLBACK_EXTENSION, MAX_FALLBACK_EXTENSION, "seconds")
        seconds = parse(values.get("seconds"))
    except FieldError as error:
        problems.append(Source(None).problem(("seconds",), error.reason, error.hint))
    try:
        reason = fields.text(values.get("reason")).strip()
        if not 0 < len(reason) <= MAX_REASON_LENGTH:
            hint = f"1 to {MAX_REASON_LENGTH}: why it is extended"
            problems.append(
                Source(None).problem(("reason",), f"has {len(reason)} characters", hint)
            )
    except FieldError as error:
        problems.append(Source(None).problem(("reason",), error.reason, error.hint))
    problems += [
        Source(None).problem((key,), "unknown key", "known here: seconds, reason")
        for key in values
        if key not in ("seconds", "reason")
    ]
    if problems:
        raise ConfigErrors(problems)
    return FallbackExtension(seconds=seconds, reason=reason)


def source_test_request(values: dict[str, Any]) -> tuple[str | None, bool, bool]:
    """The link's peer, whether a key is to be consumed, and whether several are. Raises
    ControlError."""
    peer, consume = values.pop("peer", None), values.pop("consume_one", False)
    deep = values.pop("deep", False)
    flags = isinstance(consume, bool) and isinstance(deep, bool)
    if values or not flags or not (peer is None or isinstance(peer, str)):
        raise ControlError(
            ErrorCode.BAD_REQUEST,
            "a test takes peer, a name, and consume_one and deep, true or false",
            "{}",
        )
    return peer, consume, deep
