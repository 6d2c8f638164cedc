"""What the commands share on their command line: global options, `--json`, and a lean group."""

from dataclasses import dataclass
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

try:
    from typer._coercion import PassThroughRuntimeParam
except ImportError:  # another version of typer: everything works, only slower to start
    PassThroughRuntimeParam = None  # type: ignore[assignment, misc]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document, for programs.")]


@dataclass(frozen=True)
class Settings:
    """The global options as given, by flag or by environment; None where they were not."""

    config: str | None
    socket: str | None

    @classmethod
    def of(cls, context: typer.Context) -> "Settings":
        """From the command line that `context` belongs to, during completion as well."""
        given = context.find_root().params
        return cls(config=given.get("config"), socket=given.get("socket"))


class LeanGroup(TyperGroup):
    """A group of commands whose parameters are taken as typed.

    typer checks every value through pydantic (it does so for `--help` alone), whose import takes
    as long as the rest of vpnctl together. Our commands take text and flags only, and check the
    text themselves, since a wrong value needs a hint (cli/values.py). So every parameter is
    handed typer's own pass-through in advance; a test watches that pydantic stays out.
    """

    def get_params(self, ctx: Any) -> Any:
        return _taken_as_typed(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        if command is not None:
            _taken_as_typed(command.get_params(ctx))
        return command


def _taken_as_typed(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if PassThroughRuntimeParam is not None:
            parameter._runtime_param = PassThroughRuntimeParam(
                parameter_info=parameter.type_descriptor.parameter_info, annotation=object
            )
    return parameters


def new_app(**settings: Any) -> typer.Typer:
    """A typer application in house style: plain help, no completion flags, ordinary tracebacks."""
    return typer.Typer(
        cls=LeanGroup,
        add_completion=False,
        rich_markup_mode=None,
        pretty_exceptions_enable=False,
        **settings,
    )
