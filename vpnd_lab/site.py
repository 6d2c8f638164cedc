"""A site of a running lab: a node with a daemon."""

from __future__ import annotations

import contextlib
import json
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import trio

from vpnd_lab import programs
from vpnd_lab.control import NotAnswering, Refused, get
from vpnd_lab.errors import DaemonFailed, LabError, WaitTimeout, last_lines
from vpnd_lab.external_keys import key_sources, renew_certificate
from vpnd_lab.fork_server import fork_daemon, forks
from vpnd_lab.node import Node
from vpnd_lab.patience import patient
from vpnd_lab.plan import Address, SitePlan
from vpnd_lab.process import ProcessId, spawn

if TYPE_CHECKING:
    from vpnd_lab.kme.certificates import CertificateKind

# Generous: in an emulator, on a busy machine, a start takes 30 s. A daemon that dies ends the wait.
START_SECONDS = 120.0
STOP_SECONDS = 60.0
# How often a daemon is asked while something is awaited: less often the longer it takes, so that
# tests that wait for minutes leave the processor to others.
ASK_EVERY_SECONDS = 0.03
ASK_SELDOM_SECONDS = 0.5


class Site(Node):
    """A gateway. Its daemon keeps running in a session of its own until it is told otherwise."""

    _identity: str | None = None

    @property
    def plan(self) -> SitePlan:
        """What its daemon is told."""
        return self._plan.sites[self.name]

    @property
    def config_path(self) -> Path:
        """Its vpnd.toml."""
        return self.folder / "etc" / "vpnd.toml"

    @property
    def control_socket(self) -> Path:
        """Its daemon's control socket, as seen from outside the site."""
        return self.folder / "run" / "vpnd" / "control.sock"

    @property
    def daemon_log(self) -> Path:
        """What its daemons wrote to stderr, one start after another."""
        return self.folder / "vpnd.stderr"

    @property
    def daemon(self) -> ProcessId | None:
        """The daemon that was started last, if it runs."""
        process = self._state.nodes[self.name].daemon
        return process if process is not None and process.alive() else None

    @property
    def identity(self) -> str:
        """What the other side is told. Raises LabError before `init`."""
        if self._identity is None:
            raise LabError(f"site {self.name} has no identity yet", hint="await site.init() first")
        return self._identity

    def tunnel_address(self, family: Literal[4, 6] = 4, *, tunnel: str | None = None) -> Address:
        """Its address in a tunnel (the first one, unless named). Raises LabError, KeyError."""
        site_tunnel = self.plan.tunnels[0] if tunnel is None else self.plan.tunnel(tunnel)
        for address in site_tunnel.addresses:
            if address.version == family:
                return address.ip
        raise LabError(f"{self.name} has no IPv{family} address in tunnel {site_tunnel.name}")

    async def vpnctl(self, *arguments: str, seconds: float = 120) -> Any:
        """Run `vpnctl ARGUMENTS --json` in the site: what it printed, parsed.

        Raises CommandFailed where it does not exit with 0.
        """
        argv = programs.vpnctl_argv(self.config_path, arguments)
        done = await self.run(argv, seconds=seconds)
        if not done.stdout.strip():
            return None
        try:
            return json.loads(done.stdout)
        except ValueError as error:
            command = " ".join(arguments)
            raise LabError(f"`vpnctl {command} --json` printed: {done.stdout[:200]!r}") from error

    async def init(self, *, suite: Literal[1, 2] = 1) -> str:
        """`vpnctl init`: write the configuration and make the identity, of that suite, which is
        returned."""
        arguments = programs.init_arguments(self.plan, state_dir=self.folder / "state", suite=suite)
        self._identity = programs.identity_of(await self.vpnctl(*arguments))
        if further := self.plan.tunnels[1:]:
            with self.config_path.open("a", encoding="utf-8") as file:
                file.writelines(programs.tunnel_table(self.plan, tunnel) for tunnel in further)
        if self.plan.sources:
            with self.config_path.open("a", encoding="utf-8") as file:
                file.write(key_sources(self.name, self.folder, self._plan))
        return self._identity

    def renew_certificate(
        self, kind: CertificateKind = "good", *, network: str = "kme", days: float = 90.0
    ) -> None:
        """Put a new certificate for its key manager of a network in the place of the old one.

        `days`: how long it is valid, unless the kind says otherwise.
        """
        renew_certificate(self._state.folder, self.name, kind, network=network, days=days)

    async def start_daemon(
        self, *, program: Sequence[str] | None = None, env: Mapping[str, str] | None = None
    ) -> ProcessId:
        """Start `vpnd` and wait until it answers. Raises DaemonFailed with its last words.

        `program`: what to start in its place, with the same arguments; `env`: what its environment
        has besides.
        """
        if self.daemon is not None:
            raise LabError(f"the daemon of {self.name} runs already", hint="stop it first")
        log = os.open(self.daemon_log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        said_before = os.fstat(log).st_size
        try:
            process = await self._spawn_daemon(program, env, stdin=null, output=log)
        finally:
            os.close(log)
            os.close(null)
        self._state.nodes[self.name].daemon = process
        self._state.save()
        await self._wait_answering(process, said_before)
        return process

    async def _spawn_daemon(
        self,
        program: Sequence[str] | None,
        extra: Mapping[str, str] | None,
        *,
        stdin: int,
        output: int,
    ) -> ProcessId:
        argv, env = programs.daemon_argv(self.config_path, program), self.env(extra)
        root = Path("/")
        # Not where the environment is special: a fork has loaded its libraries already
        if forks(argv) and extra is None:
            start = self._start(argv, env, cwd=root)
            return await fork_daemon(start, stdin=stdin, stdout=output, stderr=output)
        return spawn(self.argv(argv, cwd=root), env=env, stdin=stdin, stdout=output, stderr=output)

    async def _wait_answering(self, process: ProcessId, said_before: int) -> None:
        why = ""
        with trio.move_on_after(patient(START_SECONDS)):
            while process.alive():
                try:
                    status = await self.status()
                except (NotAnswering, Refused) as error:
                    why = error.message
                else:
                    # Right after a SIGKILL the socket may still be that of another process.
                    if status.get("pid", process.pid) == process.pid:
                        return
                await trio.sleep(ASK_EVERY_SECONDS)
        said = self.daemon_log.read_bytes()[said_before:].decode(errors="replace")
        quoted = last_lines(said) or "    it said nothing"
        if process.alive():
            why = f"did not answer within {START_SECONDS:g} s ({why})"
        else:
            process.reap()
            why = "ended before it answered"
        raise DaemonFailed(f"the daemon of {self.name} {why}; it said:\n{quoted}")

    async def kill_daemon(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send the daemon a signal and wait until it has ended. Tunnels keep running.

        Raises DaemonFailed where none runs or it does not end.
        """
        process = self.daemon
        if process is None:
            raise DaemonFailed(f"no daemon runs in {self.name}", hint="start_daemon() first")
        fd = process.open_pidfd()
        try:
            signal.pidfd_send_signal(fd, number)
            with trio.move_on_after(patient(STOP_SECONDS)) as scope:
                await trio.lowlevel.wait_readable(fd)
        finally:
            trio.lowlevel.notify_closing(fd)
            os.close(fd)
        if scope.cancelled_caught:
            late = f"{STOP_SECONDS:g} s after {number.name}"
            raise DaemonFailed(f"the daemon of {self.name} still runs {late}")
        process.reap()
        self._state.nodes[self.name].daemon = None
        self._state.save()

    async def stop_daemon(self) -> None:
        """The orderly end: SIGTERM. Raises DaemonFailed."""
        await self.kill_daemon(signal.SIGTERM)

    async def get(self, path: str) -> Any:
        """GET from the daemon's control API. Raises NotAnswering, Refused."""
        return await trio.to_thread.run_sync(
            partial(get, self.control_socket, path), abandon_on_cancel=True
        )

    async def status(self) -> Any:
        """The node's status, as the control API gives it."""
        return await self.get(programs.STATUS_PATH)

    async def link_status(self, peer: str) -> Any:
        """A link's status, as the control API gives it. Raises NotAnswering, Refused."""
        return await self.get(programs.link_path(peer))

    async def wait_link(
        self, peer: str, condition: Callable[[Any], bool], *, what: str, seconds: float = 60
    ) -> Any:
        """Wait until a link's status fulfils a condition; that status.

        A daemon that does not answer, or does not know the peer yet, is waited for. Raises
        WaitTimeout with the last status; `what` says there what was awaited.
        """
        last: object = "no answer yet"
        began = trio.current_time()
        with trio.move_on_after(patient(seconds)):
            while True:
                with contextlib.suppress(NotAnswering):
                    try:
                        last = await self.link_status(peer)
                        if condition(last):
                            return last
                    except Refused as error:
                        last = error.message
                waited = trio.current_time() - began
                await trio.sleep(min(max(ASK_EVERY_SECONDS, waited / 20), ASK_SELDOM_SECONDS))
        shown = json.dumps(last, indent=1) if isinstance(last, dict) else str(last)
        link = f"{self.name}: the link to {peer}"
        raise WaitTimeout(f"{link} is not {what} after {seconds:g} s; it was last:\n{shown}")

    async def wait_state(self, peer: str, *states: str, seconds: float = 60) -> Any:
        """Wait until the link to `peer` is in one of `states`; its status then.

        Raises WaitTimeout.
        """
        return await self.wait_link(
            peer,
            lambda status: programs.link_state(status) in states,
            what=" or ".join(states),
            seconds=seconds,
        )
