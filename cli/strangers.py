"""Who calls this node and is not answered, as a person reads it."""

from typing import Final

from cli.errors import printable
from vpnd.api import NodeStatus

SHOWN: Final = 5
"""Callers; the others are counted, and `--json` has them."""


def stranger_lines(node: NodeStatus) -> list[str]:
    """A few lines, or none where nobody calls in vain."""
    callers = node.get("callers", [])
    if not callers:
        return []
    lines = ["calls that are not answered; what a caller claims is not proved:"]
    for caller in callers[:SHOWN]:
        lines += [f"  {caller['reason']}", f"    {caller['hint']}"]
    if len(callers) > SHOWN:
        lines.append(f"  … and {len(callers) - SHOWN} more: vpnctl status --json")
    return [printable(line) for line in lines]
