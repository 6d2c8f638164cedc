"""A key manager from outside: start it, kill it, have it do wrong, ask what it was asked."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import trio

from vpnd_lab import programs
from vpnd_lab.control import NotAnswering, Refused, ask
from vpnd_lab.errors import DaemonFailed, LabError, last_lines
from vpnd_lab.kme.config import KmeConfig
from vpnd_lab.patience import patient
from vpnd_lab.process import ProcessId, spawn

if TYPE_CHECKING:  # what they are of is for the key manager's own process
    from vpnd_lab.kme.certificates import CertificateKind
    from vpnd_lab.kme.server import Listening

START_SECONDS = 120.0
STOP_SECONDS = 30.0
_ASK_EVERY_SECONDS = 0.03


class KeyManagerHandle:
    """A key manager's process. What it is told holds until it is told otherwise, or ends.

    What it was asked is kept in its network's file, and stays when it is killed.
    """

    def __init__(
        self,
        config: Path,
        *,
        log: Path,
        wrap: Callable[[Sequence[str]], list[str]] = list,
        env: Mapping[str, str] | None = None,
        standalone: bool = False,
        on_change: Callable[[ProcessId | None], None] = lambda process: None,
    ) -> None:
        """`config`: its file (lab.kme.config); `log`: where its stderr goes.

        `wrap` makes of a command line one that runs where the key manager is to run. A standalone
        one ends with this process, and has the same ports after each start. `on_change` is told
        of each process.
        """
        self.config_path = config
        self.log = log
        self.process: ProcessId | None = None
        self._config = KmeConfig.load(config)
        self._wrap = wrap
        self._env = dict(os.environ if env is None else env)
        self._standalone = standalone
        self._tie: int | None = None
        self._on_change = on_change

    @property
    def name(self) -> str:
        """Its KME ID, and its system ID in SKIP."""
        return self._config.name

    @property
    def control_socket(self) -> Path:
        """Its control address."""
        return Path(self._config.control)

    def urls(self, api: Literal["etsi", "skip"] = "etsi") -> list[str]:
        """What a source's `urls` is to be; of a pair on loopback, once it has started."""
        addresses = self._config.etsi if api == "etsi" else self._config.skip
        return [
            f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
            for host, port in addresses
        ]

    async def start(self) -> None:
        """Start the process and wait until it answers. Raises DaemonFailed with its last words."""
        if self.process is not None and self.process.alive():
            raise LabError(f"the key manager {self.name} runs already", hint="stop it first")
        argv = [programs.program("vpnd-lab-kme"), "serve", str(self.config_path)]
        if self._standalone:
            argv.append("--until-stdin-ends")
        log = os.open(self.log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o644)
        said_before = os.fstat(log).st_size
        stdin = self._stdin()
        try:
            self.process = spawn(
                self._wrap(argv), env=self._env, stdin=stdin, stdout=log, stderr=log
            )
        finally:
            os.close(log)
            os.close(stdin)
        self._on_change(self.process)
        state = await self._wait_answering(self.process, said_before)
        if self._standalone:
            self._config.etsi = [(host, port) for host, port in state["addresses"]["etsi"]]
            self._config.skip = [(host, port) for host, port in state["addresses"]["skip"]]
            self._config.write(self.config_path)

    def _stdin(self) -> int:
        if not self._standalone:
            return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        self._untie()
        read_end, self._tie = os.pipe()
        return read_end

    def _untie(self) -> None:
        if self._tie is not None:
            os.close(self._tie)
            self._tie = None

    async def _wait_answering(self, process: ProcessId, said_before: int) -> Any:
        why = "no answer"
        with trio.move_on_after(patient(START_SECONDS)):
            while process.alive():
                try:
                    state = await self.state()
                except (NotAnswering, Refused) as error:
                    why = error.message
                else:
                    if state["pid"] == process.pid:
                        return state
                await trio.sleep(_ASK_EVERY_SECONDS)
        if process.alive():
            why = f"did not answer within {START_SECONDS:g} s ({why})"
        else:
            process.reap()
            why = "ended before it answered"
        said = self.log.read_bytes()[said_before:].decode(errors="replace")
        quoted = last_lines(said) or "    it said nothing"
        raise DaemonFailed(f"the key manager {self.name} {why}; it said:\n{quoted}")

    async def kill(self, number: signal.Signals = signal.SIGKILL) -> None:
        """Send it a signal and wait until it has ended; the pool stays. Raises DaemonFailed."""
        process = self.process
        if process is None or not process.alive():
            raise DaemonFailed(f"the key manager {self.name} does not run", hint="start() first")
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
            raise DaemonFailed(f"the key manager {self.name} still runs {late}")
        process.reap()
        self._untie()
        self.process = None
        self._on_change(None)

    async def stop(self) -> None:
        """The orderly end: SIGTERM. Raises DaemonFailed."""
        await self.kill(signal.SIGTERM)

    def last_words(self) -> str:
        """The last lines it wrote to stderr."""
        text = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        return last_lines(text)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """Anything of lab.kme.control. Raises NotAnswering, Refused."""
        who = f"the key manager {self.name}"
        return await trio.to_thread.run_sync(
            partial(ask, self.control_socket, method, path, body, who=who), abandon_on_cancel=True
        )

    async def state(self) -> Any:
        """Its name, addresses, settings, faults."""
        return await self.ask("GET", "/v1/state")

    async def fault(self, kind: str, *calls: str, **arguments: Any) -> None:
        """Do wrong in these calls (all of them, unless named), until told otherwise.

        `times`: for so many calls; `sae`: in calls of this application only; others: as the kind
        takes them (vpnd_lab.kme.faults). Raises Refused.
        """
        order = {"kind": kind, **({"calls": list(calls)} if calls else {}), **arguments}
        await self.ask("POST", "/v1/faults", order)

    async def clear_faults(self) -> None:
        """No faults any more; the listener and the certificate stay as they are."""
        await self.ask("DELETE", "/v1/faults")

    async def reset(self) -> None:
        """No faults, the listener up, a good certificate, all applications known."""
        await self.ask("POST", "/v1/reset")

    async def listener(self, state: Listening) -> None:
        """`down`: refuse connections; `silent`: accept them and no more; `up`."""
        await self.ask("POST", "/v1/listener", {"state": state})

    async def certificate(self, kind: CertificateKind = "good", *, days: float = 90.0) -> None:
        """Show a new certificate, valid for `days` unless the kind says otherwise."""
        await self.ask("POST", "/v1/certificate", {"kind": kind, "days": days})

    async def network(self, **changes: float) -> None:
        """Change rate, pool, delay or error_rate of its whole network."""
        await self.ask("POST", "/v1/network", changes)

    async def drain(self) -> None:
        """Empty its pools; they fill at the network's rate."""
        await self.ask("POST", "/v1/drain")

    async def know(self, sae: str, kme: str | None) -> None:
        """Know an application and its key manager; None: know it no more."""
        await self.ask("POST", "/v1/saes", {"sae": sae, "kme": kme})

    async def calls(self, *kinds: str, after: int = 0) -> list[Any]:
        """What it was asked, of these kinds or all; `tls-failed` is one of them."""
        answer = await self.ask("GET", f"/v1/calls?after={after}")
        return [call for call in answer["calls"] if not kinds or call["kind"] in kinds]

    async def statistics(self) -> Any:
        """What it was asked, counted."""
        return await self.ask("GET", "/v1/statistics")
