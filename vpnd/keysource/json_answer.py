"""JSON from a key manager, read with suspicion and quoted with care.

What is quoted of an answer is short and printable, and has nothing that could be a key: of an
answer that may hold one only the shape is told.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final, Never

from vpnd.config_errors import printable
from vpnd.keysource.base import SourceFault
from vpnd.keysource.https_call import Answer
from vpnd.keysource.key_manager import BadAnswer

QUOTED: Final = 160
"""Characters of a text that is quoted."""

_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# 12 bytes and more in Base64 or hex. An ID in UUID form is no secret, and is wanted
_LIKE_A_KEY: Final = re.compile(r"[A-Za-z0-9+/_=-]{16,}")

JsonObject = dict[str, Any]


def quoted_untrusted(text: str) -> str:
    """A text from outside, as a message may hold it."""

    def without_key(found: re.Match[str]) -> str:
        word = found[0]
        plain_word = word.isalpha() and (word.islower() or word.istitle() or word.isupper())
        return word if plain_word or _UUID.fullmatch(word) else "…"

    return '"' + printable(_LIKE_A_KEY.sub(without_key, text[: 4 * QUOTED]), limit=QUOTED) + '"'


def object_untrusted(answer: Answer) -> JsonObject:
    """The JSON object in an answer that says that all is well. Raises BadAnswer."""
    size = len(answer.body)
    try:
        found = _parsed(answer)
    except ValueError as error:
        what = f"{size} bytes of {answer.content_type or 'no type'}"
        raise BadAnswer(
            SourceFault.BAD_ANSWER,
            f"expected JSON; {what} came that are none ({error})",
            "cut off? a web page of something in between?",
        ) from None
    if not isinstance(found, dict):
        raise BadAnswer(SourceFault.BAD_ANSWER, f"expected a JSON object; {json_kind(found)} came")
    return found


def message_untrusted(answer: Answer) -> str:
    """What an error's body says, quoted; or what it is."""
    if not answer.body:
        return "no text"
    try:
        found = _parsed(answer)
    except ValueError:
        text = bytes(answer.body[: 8 * QUOTED]).decode("utf-8", "replace")
        plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
        return f"{quoted_untrusted(plain)} ({answer.content_type or 'no type'})"
    if isinstance(found, dict):
        for key in ("message", "error", "detail", "title"):
            if isinstance(found.get(key), str) and found[key]:
                return quoted_untrusted(found[key])
            if isinstance(found.get(key), dict) and isinstance(found[key].get("message"), str):
                return quoted_untrusted(found[key]["message"])
    return f"{json_kind(found)} without a message"


def is_json_or_nothing(answer: Answer) -> bool:
    """Whether a body is a program's answer, not a web page."""
    if not answer.body:
        return True
    try:
        _parsed(answer)
    except ValueError:
        return False
    return True


def json_kind(value: object) -> str:
    """What a value is, in JSON's words."""
    for python_type, name in (
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "a string"),
        (list, "an array"),
        (dict, "an object"),
    ):
        if isinstance(value, python_type):
            return name
    return "null"


def _parsed(answer: Answer) -> Any:
    """Raises ValueError whose text holds nothing of the body."""
    try:
        # A byte order mark is let pass (RFC 8259, section 8.1)
        text = answer.body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"no UTF-8 at byte {error.start}") from None
    try:
        return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        reason = f"{error.msg.lower()} at character {error.pos}"
        error.doc = ""  # the text itself goes nowhere with the error
        raise ValueError(reason) from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError as error:
        # Also a number of thousands of digits, which Python refuses
        raise ValueError(str(error) if isinstance(error, _NotOnce) else "a value of none") from None


class _NotOnce(ValueError):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> JsonObject:
    """Two values under one name: which would count depends on who reads."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise _NotOnce("a name stands twice in an object")
    return found


def _no_constant(name: str) -> Never:
    raise ValueError("no JSON number")
