"""`vpnctl reload`: the configuration as it is on disk, taken by the running daemon."""

from typing import Annotated

import typer

from cli.client import Client
from cli.errors import CliError, Problem, UsageProblem, printable
from cli.options import AsJson, Settings
from cli.show import print_json
from vpnd.api import ConfigChange, ReloadResult

_MARKS = {"added": "+", "removed": "-", "changed": "~"}


def reload(
    context: typer.Context,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only say what would change; exit 2 if it cannot.")
    ] = False,
    remove_all_peers: Annotated[
        bool,
        typer.Option(
            "--remove-all-peers",
            help="Take it that no peer's file is left; else that is an error, and changes nothing.",
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Take the configuration as it is on disk; links that are the same in it are not touched.

    A configuration with errors, or with a change that needs a restart, changes nothing.
    """
    result = Client.of(Settings.of(context)).reload(
        dry_run=dry_run, remove_all_peers=remove_all_peers
    )
    if as_json:
        print_json(result)
    else:
        for line in _lines(result):
            print(printable(line))
    if result["restart"]:
        raise UsageProblem(
            f"restart vpnd for {', '.join(result['restart'])}: a reload would be refused",
            "systemctl restart vpnd takes no tunnel down",
        )
    if result["problems"]:
        first, *rest = result["problems"]
        raise CliError(
            first, "it is tried again by itself; see vpnctl status", more=[Problem(r) for r in rest]
        )


def _lines(result: ReloadResult) -> list[str]:
    lines = [line for change in result["changes"] for line in _change(change)]
    if not lines:
        return ["nothing would change" if result["dry_run"] else "nothing has changed"]
    return lines


def _change(change: ConfigChange) -> list[str]:
    lines = [f"{_MARKS.get(change['change'], '?')} {change['what']} {change['name']}"]
    for key in change["keys"]:
        before, after = key["before"] or "not set", key["after"] or "not set"
        lines.append(f"    {key['key']}: {before} -> {after}")
    return lines
