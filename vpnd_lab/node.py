"""A node of a running lab: commands are run in it."""

from __future__ import annotations

import contextlib
import math
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import trio

from vpnd_lab.errors import CommandFailed, LabError, WaitTimeout
from vpnd_lab.fork_server import Background, Start, forked, forks, module_argv, run_forked
from vpnd_lab.holder import enter_argv, holder_of, inside, node_env
from vpnd_lab.patience import patient
from vpnd_lab.plan import Address, Interface, Kind, Plan
from vpnd_lab.process import ProcessId
from vpnd_lab.state import LabState


@dataclass(frozen=True, slots=True)
class Completed:
    """A command that has run to its end."""

    returncode: int
    stdout: str
    stderr: str


class Node:
    """A site, a router or a client host."""

    def __init__(self, name: str, state: LabState, plan: Plan) -> None:
        self.name = name
        self.folder = state.folder / name
        self._state = state
        self._plan = plan
        self.within: tuple[str, ...] = ()
        """What leads on from the node to where its commands run: `ip netns exec NAME`, say."""

    def __repr__(self) -> str:
        return f"<{self.kind} {self.name} of lab {self._state.name}>"

    @property
    def kind(self) -> Kind:
        return self._plan.nodes[self.name]

    @property
    def addresses(self) -> tuple[Interface, ...]:
        """All its addresses, its main ones first (a site's: on its first uplink)."""
        return self._plan.addresses(self.name)

    def address(self, family: Literal[4, 6] = 4) -> Address:
        """Its main address of a family. Raises LabError where it has none."""
        address = self._plan.address(self.name, family)
        if address is None:
            raise LabError(f"{self.name} has no IPv{family} address", hint="give it one")
        return address

    async def change_address(self, old: Address, new: Address) -> None:
        """Give the interface that has `old` the address `new` instead; its routes stay.

        `address` and `addresses` go on telling what the lab file says. Raises LabError where the
        node does not have `old`, CommandFailed where it cannot have `new`.
        """
        shown = (await self.run(["ip", "-o", "address", "show", "to", str(old)])).stdout.split()
        if not shown:
            raise LabError(f"{self.name} has no address {old}")
        interface, length = shown[1], shown[3].rpartition("/")[2]
        if old.version == 4:
            # Else the new address, while it is the second one of its network, goes with the first
            promote = f"/proc/sys/net/ipv4/conf/{interface}/promote_secondaries"
            await self.run(["tee", promote], stdin="1")
        nodad = " nodad" if new.version == 6 else ""
        lines = (
            f"address add {new}/{length} dev {interface}{nodad}",
            f"address del {old}/{length} dev {interface}",
        )
        await self.run(["ip", "-batch", "-"], stdin="\n".join(lines) + "\n")

    async def know_names(self, names: Mapping[str, Sequence[Address]]) -> None:
        """Let these names, and no others, stand in the node's /etc/hosts, in this order."""
        file = self.folder / "hosts"
        first = not file.exists()
        # The same file each time: programs that run see what is written into it
        lines = [f"{address} {name}\n" for name, each in names.items() for address in each]
        file.write_text("127.0.0.1 localhost\n" + "".join(lines), encoding="utf-8")
        if first:
            await self.run(["mount", "--bind", str(file), "/etc/hosts"])

    def argv(self, argv: Sequence[str], *, cwd: Path | None = None) -> list[str]:
        """The command line that runs `argv` in this node, for programs that start their own."""
        inside = [*self.within, *argv]
        return enter_argv(self._state, self.name, inside, cwd=Path.cwd() if cwd is None else cwd)

    def env(self, extra: Mapping[str, str] | None = None) -> dict[str, str]:
        """The environment commands have in this node."""
        return node_env(self._state, self.name, extra)

    async def run(
        self,
        argv: Sequence[str],
        *,
        check: bool = True,
        stdin: str = "",
        env: Mapping[str, str] | None = None,
        seconds: float = math.inf,
    ) -> Completed:
        """Run a command to its end.

        Raises CommandFailed where it does not exit with 0 (unless `check` is False), WaitTimeout
        where it takes longer than `seconds`; it is killed then.
        """
        try:
            with trio.fail_after(patient(seconds)):
                done = await self._run(argv, stdin.encode(), self.env(env))
        except trio.TooSlowError:
            command = " ".join(argv)
            raise WaitTimeout(f"in {self.name}, `{command}` took over {seconds:g} s") from None
        stdout = done.stdout.decode(errors="replace")
        stderr = done.stderr.decode(errors="replace")
        if check and done.returncode != 0:
            raise CommandFailed(self.name, argv, done.returncode, stdout=stdout, stderr=stderr)
        return Completed(returncode=done.returncode, stdout=stdout, stderr=stderr)

    async def _run(
        self, argv: Sequence[str], stdin: bytes, env: Mapping[str, str]
    ) -> subprocess.CompletedProcess[bytes]:
        if forks(argv) and not self.within:
            return await run_forked(self._start(argv, env, cwd=Path.cwd()), stdin=stdin)
        return await trio.run_process(
            self.argv(argv),
            stdin=stdin,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=env,
        )

    def _start(self, argv: Sequence[str], env: Mapping[str, str], *, cwd: Path) -> Start:
        return Start(argv, env, inside(cwd), holder_of(self._state, self.name))

    @contextlib.asynccontextmanager
    async def background(
        self, argv: Sequence[str], *, env: Mapping[str, str] | None = None
    ) -> AsyncIterator[trio.Process]:
        """Run a command beside the block, with pipes to its stdin, stdout and stderr.

        It is killed at the block's end. The block reads the pipes, or they fill.
        """
        process = await trio.lowlevel.open_process(
            self.argv(argv),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self.env(env),
        )
        try:
            yield process
        finally:
            process.kill()
            with trio.CancelScope(shield=True):
                await process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        await stream.aclose()

    @contextlib.asynccontextmanager
    async def module(self, name: str, *arguments: object) -> AsyncIterator[Background]:
        """Run `python -m name` beside the block, a module of the lab's own; see `background`."""
        argv = module_argv(name, arguments)
        if forks(argv) and not self.within:
            async with forked(self._start(argv, self.env(), cwd=Path.cwd())) as background:
                yield background
            return
        async with self.background(argv) as process:
            assert process.stdin is not None  # noqa: S101 given by `background`
            assert process.stdout is not None  # noqa: S101
            assert process.stderr is not None  # noqa: S101
            yield Background(
                ProcessId.of(process.pid),
                stdin=process.stdin,
                stdout=process.stdout,
                stderr=process.stderr,
            )
