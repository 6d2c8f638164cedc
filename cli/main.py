"""vpnctl's entry point: the tree of commands, and the one place where errors become exit codes.

Every module here is imported on every start; what is slow (pydantic, cryptography) is imported
inside the function that needs it.
"""

import errno
import io
import os
import sys
from typing import Annotated, Final

import typer

from cli import (
    check,
    completion,
    events,
    fallback,
    identity,
    keysources,
    labs,
    peers,
    reload,
    setup,
    status,
)
from cli.errors import PROGRAM, CliError, UsageProblem, report
from cli.options import new_app
from cli.output import Output, OutputFailed, discard
from cli.show import print_json_error
from vpnd.api import CONTROL_SOCKET_ENVIRONMENT, ExitCode

INTERRUPTED: Final = 130
"""The exit code after Ctrl-C: 128 and the signal's number, as shells have it."""

MAX_SOCKET_PATH_BYTES: Final = 107  # sockaddr_un.sun_path with its terminating zero

app = new_app(name=PROGRAM, help="Operate vpnd: quantum-safe links between sites.")
app.command()(setup.init)
app.add_typer(identity.app)
app.add_typer(peers.app)
app.add_typer(keysources.app)
app.add_typer(fallback.app)
app.command()(status.status)
app.command()(events.events)
app.command()(check.check)
app.command()(reload.reload)
app.add_typer(labs.app)
app.command()(completion.completion)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"{PROGRAM} {version('vpnd')}")
        raise typer.Exit


@app.callback()
def global_options(
    config: Annotated[
        str | None,
        typer.Option(
            "--config",
            metavar="FILE",
            envvar="VPND_CONFIG",
            help="The node's configuration; /etc/vpnd/vpnd.toml unless given.",
        ),
    ] = None,
    socket: Annotated[
        str | None,
        typer.Option(
            "--socket",
            metavar="PATH",
            envvar=CONTROL_SOCKET_ENVIRONMENT,
            help="The daemon's control socket; from the configuration unless given.",
        ),
    ] = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print it.")
    ] = False,
) -> None:
    if config == "":
        raise UsageProblem("--config is empty", "leave it out or name a file")
    if socket == "":
        raise UsageProblem("--socket is empty", "leave it out or name a socket")
    if socket is not None and len(os.fsencode(socket)) > MAX_SOCKET_PATH_BYTES:
        raise UsageProblem(
            f"--socket: a socket's path has at most {MAX_SOCKET_PATH_BYTES} bytes",
            "name it relative to the current folder, or through a link",
        )


def main() -> None:
    """Runs vpnctl and leaves the process with its exit code."""
    if sys.stderr is None:  # closed by the caller: print() would take stdout instead
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115  # to the end
    if sys.stdout is None:
        report(CliError("stdout is closed", "to see nothing: vpnctl … >/dev/null"))
        sys.exit(ExitCode.FAILED)
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal without UTF-8 gets '?', not a traceback
            stream.reconfigure(errors="replace")
    if sys.stdout is sys.__stdout__ and isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout = Output.around(sys.stdout)
    try:
        code = _run()
        sys.stdout.flush()
    except OutputFailed as failure:
        discard(sys.stdout)
        code = ExitCode.FAILED
        if failure.errno != errno.EPIPE:  # else the reader has seen enough (`vpnctl events | head`)
            report(
                CliError(
                    f"the output cannot be written: {failure.strerror}",
                    "what the command had to do may be done: vpnctl status; is the disk full?",
                )
            )
    sys.exit(code)


def _run() -> int:
    """The exit code. OutputFailed where stdout takes nothing more."""
    try:
        completion.register_if_asked()
        code = app(prog_name=PROGRAM, standalone_mode=False)
    except CliError as error:
        return _failed(error)
    except typer.TyperException as error:
        return _failed(_usage_problem(error))
    except typer.Abort:  # Ctrl-C
        return INTERRUPTED
    except OutputFailed:
        raise
    except OSError as failure:
        if failure.filename is None:
            raise  # a bug of ours
        return _failed(
            CliError(
                f"{os.fsdecode(failure.filename)}: {failure.strerror}",
                "run it as root, or as the daemon's own user",
            )
        )
    return code if isinstance(code, int) else ExitCode.DONE


def _failed(error: CliError) -> int:
    report(error)
    if _asked_for_json(sys.argv[1:]):
        print_json_error(error.document())
    return error.code


def _asked_for_json(arguments: list[str]) -> bool:
    """Whether a command line asks for JSON. It is read as it was typed: the parser gives nothing
    of one that it cannot read."""
    own = arguments[: arguments.index("--")] if "--" in arguments else arguments
    if "lab" in own and "exec" in own[own.index("lab") :]:
        return False  # what follows belongs to another program
    return "--json" in own


def _usage_problem(error: typer.TyperException) -> UsageProblem:
    """typer's complaint about the command line, in our words where ours are better."""
    message = error.format_message()
    context = getattr(error, "ctx", None)
    command = context.command_path if context is not None else PROGRAM
    option = getattr(error, "option_name", None)
    if option in ("--config", "--socket"):
        return UsageProblem(
            message, f"{option} goes before the command: {PROGRAM} {option} … COMMAND"
        )
    if option == "--json" and command == PROGRAM:
        return UsageProblem(message, f"--json goes after the command: {PROGRAM} status --json")
    statement, _, instead = message.partition(" Did you mean ")
    if instead:
        return UsageProblem(statement, f"did you mean {instead}")
    return UsageProblem(message, f"{command} --help shows how it is used")
