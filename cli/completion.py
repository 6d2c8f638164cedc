"""`vpnctl completion`: what a shell needs in order to complete vpnctl's command lines."""

import os
from typing import Annotated, Final

import typer

from cli.errors import PROGRAM, UsageProblem

SHELLS: Final = ("bash", "zsh", "fish")

VARIABLE: Final = "_VPNCTL_COMPLETE"
"""Set by the shell's function when it asks vpnctl for completions."""


def completion(
    context: typer.Context,
    shell: Annotated[
        str,
        typer.Argument(metavar="bash|zsh|fish", autocompletion=lambda: list(SHELLS)),
    ],
) -> int:
    """Print the completion script of a shell.

    bash: vpnctl completion bash > /etc/bash_completion.d/vpnctl

    zsh: vpnctl completion zsh > /usr/local/share/zsh/site-functions/_vpnctl

    fish: vpnctl completion fish > /etc/fish/completions/vpnctl.fish
    """
    if shell not in SHELLS:
        raise UsageProblem(
            f"{shell!r} is not a shell with completion", f"one of {', '.join(SHELLS)}"
        )
    from typer.completion import shell_complete

    register()
    return shell_complete(context.find_root().command, {}, PROGRAM, VARIABLE, f"source_{shell}")


def register() -> None:
    """Tells typer its shells; it does so itself only where it brings its own options for it."""
    from typer.completion import get_completion_inspect_parameters

    get_completion_inspect_parameters()


def register_if_asked() -> None:
    if VARIABLE in os.environ:
        register()
