"""HTTP statuses that say the same whichever interface was asked, and what to do about them."""

from __future__ import annotations

import re
from typing import Final

from vpnd.keysource.base import SourceFault
from vpnd.keysource.https_call import Answer
from vpnd.keysource.json_answer import is_json_or_nothing, quoted_untrusted
from vpnd.keysource.key_manager import BadAnswer

_NO_SUCH_METHOD: Final = (405, 501)
_OF_NGINX: Final = (495, 496)
"""Its own statuses for a client's certificate that is bad, or missing."""
_CERTIFICATE: Final = re.compile(r"\bcertificate", re.IGNORECASE)
_NONE_SENT: Final = re.compile(r"\bno (required )?(ssl |client )*certificate", re.IGNORECASE)
_LONGEST_PATH: Final = 200


def not_200(answer: Answer) -> BadAnswer | None:
    """Another success, or a redirection; None for a refusal."""
    status = answer.status
    if status >= 400:
        return None
    to = f" to {quoted_untrusted(answer.location)}" if answer.location else ""
    return BadAnswer(
        SourceFault.REFUSED,
        f"expected status 200; {status} came{to}",
        "it is not followed: write the right address into `urls`"
        if status >= 300
        else "an error of the key manager, or of a proxy before it: only 200 is success",
        undelivered=status >= 300,
    )


def asked(answer: Answer) -> str:
    """What was asked, where that tells more than the answer: a path or a method that is not
    there."""
    if not answer.asked or answer.status not in (404, *_NO_SUCH_METHOD):
        return ""
    return f" to {answer.asked[:_LONGEST_PATH]}"


def known_refusal(
    answer: Answer, message: str, *, base: str = ""
) -> tuple[SourceFault, str] | None:
    """The fault and the hint of a refusal whose status says it all; None for the others.

    `base` is the path that is put before every call.
    """
    status = answer.status
    if status in _NO_SUCH_METHOD:
        return SourceFault.REFUSED, _method_hint(answer)
    if status in _OF_NGINX or (
        status in (400, 403) and not is_json_or_nothing(answer) and _CERTIFICATE.search(message)
    ):
        return SourceFault.UNAUTHORIZED, _certificate_hint(status, message)
    if status >= 500 and status != 503:
        return (
            SourceFault.UNAVAILABLE,
            "trouble of its own, or of a proxy before it: its log says more; it is tried again by "
            "itself",
        )
    if status == 404 and base and answer.asked.count(base) > 1:
        return SourceFault.REFUSED, f"`urls` ends with {base}: leave that out, vpnd adds it"
    return None


def nothing_left(status: int) -> bool:
    """Whether a refusal says that no key was handed out: 500, and what a proxy answers for a lost
    connection (502, 504), do not."""
    return 300 <= status < 500 or status in (501, 503)


def _method_hint(answer: Answer) -> str:
    if answer.asked.startswith("POST"):
        return 'it takes no POST for this call: verbs = "get"'
    return 'it takes no GET for this call: verbs = "post"; or is `urls` the address of another API?'


def _certificate_hint(status: int, message: str) -> str:
    if status == 496 or _NONE_SENT.search(message):
        return "it wants a client certificate, and got none: set `certificate` and `key`"
    return (
        "this end's client certificate is not believed there: is its CA in what the server, or a "
        "proxy before it, takes; and is it valid by the clock there?"
    )
