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
            f"expected JSON; {what} came that are none ({error}){_words(_text(answer))}",
            "cut off? a web page of something in between?",
        ) from None
    if not isinstance(found, dict):
        said = _words(found) if isinstance(found, str) else ""
        raise BadAnswer(
            SourceFault.BAD_ANSWER, f"expected a JSON object; {json_kind(found)} came{said}"
        )
    return found


def message_untrusted(answer: Answer) -> str:
    """What an error's body says, quoted; or what it is."""
    if not answer.body:
        return "no text"
    try:
        found = _parsed(answer)
    except ValueError:
        plain = " ".join(re.sub(r"<[^>]*>", " ", _text(answer)).split())
        return f"{quoted_untrusted(plain)} ({answer.content_type or 'no type'})"
    if isinstance(found, str) and found:
        return quoted_untrusted(found)
    said = _said(found)
    if isinstance(found, dict):
        details = "; ".join(filter(None, map(_detail, _entries(found.get("details")))))
        if said and details:
            return f"{quoted_untrusted(said)} (details: {quoted_untrusted(details)})"
        said = said or details
    return quoted_untrusted(said) if said else f"{json_kind(found)} without a message"


def only_a_message(found: JsonObject) -> str:
    """What an object says that has nothing of what was asked for: `, and it says "…"`; or ""."""
    said = _said(found) or "; ".join(filter(None, map(_detail, _entries(found.get("details")))))
    return f", and it says {quoted_untrusted(said)}" if said else ""


_MESSAGES: Final = (
    *("message", "msg", "error", "error_description", "errorMessage", "detail", "title"),
    *("reason", "description", "errors"),
)
"""Under which names key managers put what they have to say; ETSI GS QKD 014 has the first."""
_ENTRIES: Final = 4
"""Of a list of messages or details that are told."""
_DEPTH: Final = 3


def _said(found: object, depth: int = 0) -> str:
    """The message in an error's JSON, whichever way it is written; "" where there is none."""
    if isinstance(found, str):
        return found
    if depth > _DEPTH:
        return ""
    if isinstance(found, list):
        return "; ".join(filter(None, (_said(one, depth + 1) for one in found[:_ENTRIES])))
    if not isinstance(found, dict):
        return ""
    for name in _MESSAGES:
        said = _said(found.get(name), depth + 1)
        if said:
            # FastAPI says of each field what is wrong with it
            where = ".".join(str(part) for part in _entries(found.get("loc")) if part != "")
            return f"{where}: {said}" if where else said
    return ""


def _detail(found: object) -> str:
    """An entry of `details` (ETSI GS QKD 014, clause 6.5): an object with anything in it."""
    if isinstance(found, dict):
        pairs = list(found.items())[:_ENTRIES]
        return ", ".join(f"{name}: {value}" for name, value in pairs if _is_plain(value))
    return str(found) if _is_plain(found) else ""


def _is_plain(value: object) -> bool:
    return isinstance(value, (str, int, float)) and value != ""


def _entries(found: object) -> list[object]:
    if isinstance(found, list):
        return found[:_ENTRIES]
    return [] if found is None else [found]


def _words(text: str) -> str:
    """A text instead of JSON, if it is words and not a piece of JSON, which may hold a key."""
    plain = " ".join(re.sub(r"<[^>]*>", " ", text).split())
    if not plain or not plain.isprintable() or re.search(r'[{}\[\]"=]', plain):
        return ""
    return f", and it says {quoted_untrusted(plain)}"


def _text(answer: Answer) -> str:
    """The beginning of a body that is no JSON, in the characters that its type names."""
    named = re.search(r"charset=\"?([\w-]+)", answer.content_type, re.IGNORECASE)
    beginning = bytes(answer.body[: 8 * QUOTED])
    try:
        return beginning.decode(named[1] if named else "utf-8", "replace")
    except (LookupError, ValueError):
        return beginning.decode("utf-8", "replace")


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
