"""Where this node's files are, read off its configuration without judging it (`check` does)."""

import os
from dataclasses import dataclass
from typing import Any, Final

from cli.errors import UsageProblem
from cli.options import Settings
from vpnd.api import CONTROL_SOCKET_NAME, DEFAULT_CONFIG_PATH, DEFAULT_RUNTIME_DIR

DEFAULT_STATE_DIR: Final = "/var/lib/vpnd"


@dataclass(frozen=True)
class NodePaths:
    """Paths as texts; `doubt` says why they may be wrong, empty when they were read."""

    config: str
    control_socket: str
    state_dir: str
    runtime_dir: str
    doubt: str = ""
    """Why the control socket may be elsewhere."""
    state_doubt: str = ""
    """Why the identities may be."""

    @classmethod
    def of(cls, settings: Settings) -> "NodePaths":
        """Of the configuration that the global options name, else of the usual one.

        UsageProblem when one was named and is not there. A file that is spoiled, or that this
        user may not read, is no obstacle: the running daemon has read a sound one.
        """
        import tomllib  # 8 ms that a command with --socket need not spend

        config = settings.config or DEFAULT_CONFIG_PATH
        try:
            with open(config, encoding="utf-8-sig", newline="") as file:
                node = tomllib.loads(file.read()).get("node", {})
        except (OSError, ValueError, RecursionError) as failure:
            reason = getattr(failure, "strerror", None) or str(failure)
            if settings.config is not None and _is_no_file(failure):
                raise UsageProblem(
                    f"{config}: {reason}", "name the node's configuration, or give --socket"
                ) from failure
            missing = isinstance(failure, FileNotFoundError)
            unread = "" if missing else f"{config} could not be read ({reason})"
            return cls._from_table(config, {}, unread)
        return cls._from_table(config, node if isinstance(node, dict) else {}, "")

    @classmethod
    def _from_table(cls, config: str, node: dict[str, Any], unread: str) -> "NodePaths":
        def path(key: str, default: str) -> str:
            value = node.get(key)
            return value if isinstance(value, str) and value else default

        runtime_dir = path("runtime_dir", DEFAULT_RUNTIME_DIR)
        return cls(
            config=config,
            control_socket=path("control_socket", os.path.join(runtime_dir, CONTROL_SOCKET_NAME)),
            state_dir=path("state_dir", DEFAULT_STATE_DIR),
            runtime_dir=runtime_dir,
            doubt=unread and f"{unread}, so the socket may be elsewhere",
            state_doubt=unread and f"{unread}, so state_dir may be elsewhere",
        )


def _is_no_file(failure: Exception) -> bool:
    """There is nothing to read, as opposed to something that is spoiled or kept from this user."""
    return isinstance(failure, OSError) and not isinstance(failure, PermissionError)
