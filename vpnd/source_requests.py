"""What a client may ask about fallbacks and key sources, read and checked."""

from __future__ import annotations

from typing import Any

from vpnd import config_fields as fields
from vpnd.api import ErrorCode, FallbackExtension
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_fields import FieldError
from vpnd.config_source import Source
from vpnd.extension_reason import extension_reason
from vpnd.fallback import MAX_EXTENSION, MIN_EXTENSION
from vpnd.node_control import ControlError


def fallback_extension(values: dict[str, Any]) -> FallbackExtension:
    """Seconds and a reason. Raises ConfigErrors with all that is wrong."""
    problems: list[ConfigProblem] = []
    seconds, reason = 0, ""
    try:
        parse = fields.whole_number(MIN_EXTENSION, MAX_EXTENSION, "seconds")
        seconds = parse(values.get("seconds"))
    except FieldError as error:
        problems.append(Source(None).problem(("seconds",), error.reason, error.hint))
    try:
        reason = extension_reason(values.get("reason"))
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


def source_test_request(values: dict[str, Any]) -> tuple[str | None, bool]:
    """The link's peer, and whether a key is to be consumed. Raises ControlError."""
    peer, consume = values.pop("peer", None), values.pop("consume_one", False)
    if values or not isinstance(consume, bool) or not (peer is None or isinstance(peer, str)):
        raise ControlError(
            ErrorCode.BAD_REQUEST,
            "a test takes peer, a name, and consume_one, true or false",
            "{}",
        )
    return peer, consume
