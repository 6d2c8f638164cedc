"""`vpnd-lab-kme`: a key manager for tests and demonstrations.

vpnd-lab-kme serve FILE             run the one that FILE describes (the lab writes such files)
vpnd-lab-kme pair FOLDER            run two on loopback, with certificates for two applications
vpnd-lab-kme tell SOCKET METHOD PATH [JSON]    an order or a question to its control address
"""

from __future__ import annotations

import argparse
import json
import signal
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

import trio

from vpnd_lab.control import ask
from vpnd_lab.errors import LabError
from vpnd_lab.kme.config import KmeConfig
from vpnd_lab.kme.control import Control
from vpnd_lab.kme.pair import open_pair
from vpnd_lab.kme.server import KeyManager


async def serve(config: KmeConfig, *, until_stdin_ends: bool = False) -> None:
    """Run a key manager until SIGTERM or SIGINT. Raises OSError, ValueError, sqlite3.Error."""
    kme = KeyManager(config)
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with kme.running(), Control(kme).listening(), trio.open_nursery() as nursery:
            if until_stdin_ends:
                nursery.start_soon(_end_with_stdin, nursery.cancel_scope)
            nursery.start_soon(_end_with_signal, signals, nursery.cancel_scope)


async def _end_with_signal(signals: object, scope: trio.CancelScope) -> None:
    async for _ in signals:  # type: ignore[attr-defined]
        scope.cancel()


async def _end_with_stdin(scope: trio.CancelScope) -> None:
    # Whoever started it holds the other end, and closes it by dying, too.
    stream = trio.lowlevel.FdStream(0)
    while await stream.receive_some():
        pass
    scope.cancel()


async def pair(folder: Path) -> None:
    """Run two on loopback until SIGTERM or SIGINT, and say how to reach them."""
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with open_pair(folder) as both:
            for end in both.ends:
                print(f"# {end.sae}, at the key manager {end.kme.name}")
                print(f"# control address: {end.kme.control_socket}")
                print(end.key_source("kme"))
            print("# Ctrl-C ends both.", flush=True)
            async for _ in signals:
                break


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="vpnd-lab-kme", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("serve", help="run the key manager that FILE describes")
    one.add_argument("file", type=Path)
    one.add_argument("--until-stdin-ends", action="store_true", help="end with who started it")
    two = commands.add_parser("pair", help="run two on loopback")
    two.add_argument("folder", type=Path, help="for certificates and the pool")
    tell = commands.add_parser("tell", help="an order or a question, see vpnd_lab/kme/control.py")
    tell.add_argument("socket", type=Path)
    tell.add_argument("method", choices=("GET", "POST", "DELETE"))
    tell.add_argument("path")
    tell.add_argument("json", nargs="?", type=json.loads, default=None)
    given = parser.parse_args(arguments)
    try:
        match given.command:
            case "serve":
                config = KmeConfig.load(given.file)
                trio.run(lambda: serve(config, until_stdin_ends=given.until_stdin_ends))
            case "pair":
                trio.run(pair, given.folder)
            case _:
                answer = ask(given.socket, given.method, given.path, given.json, who="it")
                print(json.dumps(answer, indent=1))
    except* (LabError, OSError, ValueError, sqlite3.Error) as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        print(f"vpnd-lab-kme: error: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
