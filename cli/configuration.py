"""What is on disk beside what runs, as `vpnctl status` and `vpnctl check` tell it."""

from typing import Final

from cli.errors import Problem
from vpnd.api import ConfigurationStatus

MAX_SHOWN: Final = 10
"""Lines of a kind; `vpnctl check` has all errors, and --json everything."""


def configuration_lines(found: ConfigurationStatus) -> list[str]:
    """What an operator has to know before anything else; nothing where disk and daemon agree."""
    lines = []
    if found["state"] == "errors":
        count = found["error_count"]
        lines.append(f"what is on disk is not what runs: {count} error{'s' if count > 1 else ''}")
        shown = found["errors"][:MAX_SHOWN]
        for detail in shown:
            problem = Problem.of(detail)
            lines.append(f"  {problem.message}" + (f" ({problem.hint})" if problem.hint else ""))
        if count > len(shown):
            lines.append(f"  … {count - len(shown)} more: vpnctl check")
    elif found["state"] == "differs":
        lines.append("what is on disk is not what runs: vpnctl reload --dry-run")
    if found["main_is_last_good"]:
        lines.append("  running: the last good vpnd.toml, since the one on disk had errors")
    for held in found["held"][:MAX_SHOWN]:
        guarded = ", ".join(held["guarded"]) or "nothing"
        lines.append(f"  not running: {held['peer']}; guarded: {guarded}")
    if len(found["held"]) > MAX_SHOWN:
        lines.append(f"  … and {len(found['held']) - MAX_SHOWN} more peers")
    for text in found["restart"][:MAX_SHOWN]:
        lines.append(f"  at a restart: {text}")
    if len(found["restart"]) > MAX_SHOWN:
        lines.append(f"  … and {len(found['restart']) - MAX_SHOWN} more changes")
    return [*lines, ""] if lines else []
