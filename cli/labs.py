"""`vpnctl lab …`: whole sites in network namespaces of this host, for harnesses and learning."""

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any, Final, Literal, cast

import typer

from cli.errors import CliError, Problem, UsageProblem, printable
from cli.options import AsJson, new_app
from cli.show import NOTHING, print_json, table
from vpnd.api import SCHEMA

Start = Literal["network", "daemons", "links"]
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
STARTS: Final = ("network", "daemons", "links")

app = new_app(name="lab", help="Bring up sites in network namespaces of this host.")


def complete_lab(incomplete: str) -> list[str]:
    """Names of the labs that stand, for the shell."""
    from vpnd_lab import commands

    return [lab["name"] for lab in commands.status() if lab["name"].startswith(incomplete)]


LabArgument = Annotated[
    str, typer.Argument(metavar="LAB", help="A lab's name.", autocompletion=complete_lab)
]


@app.command()
def up(
    file: Annotated[str, typer.Argument(metavar="FILE", help="The lab's description, TOML.")],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Instead of the file's.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--start", metavar="|".join(STARTS), help="How far to start it; links unless given."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Bring a lab up and let it stand until `down`."""
    if start is not None and start not in STARTS:
        raise UsageProblem(f"--start: {start!r} is not known", f"one of {', '.join(STARTS)}")
    if name is not None:
        _check_name(name, "--name")
    from vpnd_lab import commands

    with _told():
        summary = commands.up(file, name=name, start=cast(Start, start or "links"))
    _show(summary, as_json=as_json)


@app.command(context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
def exec(
    lab: LabArgument,
    node: Annotated[str, typer.Argument(metavar="NODE", help="A site, a router or a host.")],
    command: Annotated[list[str], typer.Argument(metavar="COMMAND", help="With its arguments.")],
) -> int:
    """Run a command in a node of a lab.

    Exits with the command's own exit code.
    """
    _check_name(lab, "LAB")
    from vpnd_lab import commands

    with _told():
        return commands.exec(lab, node, command)


@app.command()
def status(as_json: AsJson = False) -> None:
    """Show the labs of this host and their nodes."""
    from vpnd_lab import commands

    with _told():
        labs = commands.status()
    if as_json:
        print_json({"schema": SCHEMA, "labs": labs})
    elif not labs:
        print("no labs: vpnctl lab up FILE brings one up")
    else:
        sys.stdout.write(table(_HEADS, [row for lab in labs for row in _rows(lab)]))


@app.command()
def down(lab: LabArgument, as_json: AsJson = False) -> None:
    """Take a lab away, whoever made it and whatever is left of it."""
    _check_name(lab, "LAB")
    from vpnd_lab import commands

    with _told():
        summary = commands.down(lab)
    if as_json:
        print_json(summary)
    else:
        print(f"{printable(lab)}: taken away")


_HEADS: Final = ("lab", "state", "node", "kind", "addresses", "daemon")


def _show(summary: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        print_json(summary)
    else:
        sys.stdout.write(table(_HEADS, _rows(summary)))


def _rows(lab: dict[str, Any]) -> list[list[str]]:
    return [
        [
            lab["name"],
            lab["state"],
            node["name"],
            node["kind"],
            ", ".join(map(str, node["addresses"])) or NOTHING,
            NOTHING if node["daemon_pid"] is None else f"pid {node['daemon_pid']}",
        ]
        for node in lab["nodes"]
    ]


def _check_name(name: str, flag: str) -> None:
    """A lab's name is a folder's, and `down` takes that away: nothing else may be meant by it."""
    if not _NAME.fullmatch(name):
        raise UsageProblem(
            f"{flag}: {name!r} cannot be the name of a lab",
            "small letters, digits and '-', at most 40: see vpnctl lab status",
        )


@contextmanager
def _told() -> Iterator[None]:
    """The lab's errors as ours."""
    from vpnd_lab.errors import LabError, LabFileError

    try:
        yield
    except LabFileError as wrong:
        raise UsageProblem.of(
            [
                Problem(
                    ": ".join(part for part in (wrong.source, each.key, each.reason) if part),
                    each.hint or "vpnd_lab/spec.py describes the file of a lab",
                )
                for each in wrong.problems
            ]
        ) from None
    except LabError as failed:
        todo = failed.hint or "vpnctl lab status shows what there is"
        raise CliError(failed.message, todo) from None
