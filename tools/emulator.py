"""Runs a command on a kernel that has WireGuard, inside an emulated machine.

The kernel is Debian's, unpacked by `tools/setup --emulator` (never installed); virtme boots it in
qemu on this machine's own file system. Whatever the guest writes stays in its memory and is gone
with it, except below the folders named by ``--writable``.

Exit status: that of the command; 124 when it ran out of time; 125 when the guest did not boot or
died before the command ended; 130 when interrupted.
"""

from __future__ import annotations

import argparse
import collections
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from priority import share_as_nice

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".setup"

# Time from qemu's start to the first command. A guest under KVM takes about 3 s, an emulated one
# 12 to 20 s on a machine that has nothing else to do, and minutes where others go before it. A KVM
# that is broken (nested, as in some clouds) often does not fail but stands still: hence a bound of
# its own.
BOOT_SECONDS = {"kvm": 30, "tcg": 900}
EXIT_OUT_OF_TIME = 124
EXIT_NO_GUEST = 125
EXIT_INTERRUPTED = 130

KERNEL_MODULES = ("wireguard", "veth")

# What only costs an emulated processor time. `rep stos` and `rep movs`, by which the kernel clears
# and copies pages where a processor says that they are fast (erms, rep_good), are done one by one:
# clearing a page takes five times as long. smap and smep change a mode at every copy from or to a
# program; la57 is one more level of page tables. Without avx, C libraries and kernel take their
# plainer code, of which qemu makes better code (SHA-256 twice as fast). Nobody attacks the guest.
EMULATED_PROCESSOR = "max,-erms,-smap,-smep,-la57,-avx,-avx2"
EMULATED_KERNEL = ("mitigations=off", "clearcpuid=rep_good", "init_on_alloc=0", "audit=0")

# Where the guest sees this machine's file system a second time, to be mounted anew with a cache.
HOST = "/run/host"

# Runs as root in the guest, before the command.
#
# The file system that virtme provides asks this machine about every single file name again and
# again, and an emulated processor pays for that dearly: importing trio takes 10 s there, and 2 s
# with a cache. So the guest mounts the same files once more, with one, puts a layer in its memory
# above them, and moves there. The layer takes every write, to whatever folder, and goes with it.
GUEST_SCRIPT = """\
#!/bin/bash
touch {state}/booted
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
set -e
ip link set lo up
modprobe -a {modules}
mkdir -p /run/tmp /run/home /run/netns /run/wireguard /run/layer/new /run/layer/work /run/root
chmod 1777 /run/tmp
tag=$(awk '$2 == "{host}" {{ print $1 }}' /proc/mounts)
umount {host}
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose "$tag" {host}
mount -t overlay -o lowerdir={host},upperdir=/run/layer/new,workdir=/run/layer/work layer /run/root
for folder in /dev /proc /sys; do mount --rbind $folder /run/root$folder; done
for folder in /run {writable}; do mount --bind $folder /run/root$folder; done
mkdir -p /run/root/lib/modules
mount --bind /lib/modules /run/root/lib/modules
{hide_tmp}
cd /run/root
mkdir -p {inside_out}
pivot_root . {inside_out}
exec chroot . bash {state}/command.sh
"""
# Then this, in there. HOME and TMPDIR are in memory, for what cannot be put on an overlay.
COMMAND_SCRIPT = """\
umount -l /{inside_out}
export PATH={path} HOME=/run/home TMPDIR=/run/tmp LANG=C.UTF-8 TERM=dumb
export PYTHONUNBUFFERED=1 HYPOTHESIS_STORAGE_DIRECTORY=/run/hypothesis VPND_TEST_BACKEND=kernel
# An emulated processor is some thirty times slower.
export VPND_LAB_PATIENCE=6 VPND_LAB_FORK_SERVER=1
cd {cwd}
{command}
echo $? >{state}/status.new
mv {state}/status.new {state}/status
"""
# What was the root before, seen from the new one until it is let go.
INSIDE_OUT = "run/before"


class EmulatorError(Exception):
    """The guest cannot be started, did not boot, or died. The message says what to do."""


class GuestDied(EmulatorError):
    """The guest had booted and is gone: its kernel panicked, or qemu ended."""


class OutOfTime(Exception):
    """The command did not end within its time."""


@dataclass(frozen=True)
class Machine:
    """What the guest is made of.

    accelerator: "kvm" or "tcg" (emulation). memory: MiB. writable: host folders that the guest
    sees at the same path and can write to.
    """

    accelerator: str
    cpus: int
    memory: int
    writable: tuple[Path, ...]


def kernel_image() -> Path:
    """The kernel that set-up unpacked. Raises EmulatorError if there is none, or none in reach."""
    if ROOT.is_relative_to("/var/tmp"):  # noqa: S108  # not a temporary file of ours
        raise EmulatorError(
            "the guest has a /var/tmp of its own and would not find this checkout there; move it"
        )
    images = sorted((WORK / "kernel" / "boot").glob("vmlinuz-*"))
    if not images:
        raise EmulatorError("no kernel for the emulator; run: make setup-emulator")
    return images[-1]


def virtme_command(machine: Machine, script: Path) -> list[str]:
    """The command line that boots `machine` and runs `script` in it."""
    command = [
        # If this program is killed, even by SIGKILL, the guest goes too: qemu is a grandchild,
        # and only a PID namespace ends grandchildren for certain.
        *("setpriv", "--pdeathsig", "KILL"),
        *(("unshare", "--pid", "--fork", "--kill-child=KILL") if os.geteuid() == 0 else ()),
        str(ROOT / ".venv/bin/virtme-run"),
        "--mods=auto",
        f"--kimg={kernel_image()}",
        # virtiofsd, which virtme would try first, needs a daemon and refuses to run in many
        # containers; 9p is in qemu itself.
        "--force-9p",
        "--no-dhcp",
        f"--cpus={machine.cpus}",
        f"--memory={machine.memory}M",
        "--user=root",
        "--verbose",
        "--show-boot-console",
        f"--rodir={HOST}=/",
        *(f"--rwdir={folder}" for folder in machine.writable),
    ]
    command.append(f"--script-sh=exec bash {shlex.quote(str(script))}")
    if machine.accelerator == "tcg":
        command.append("--disable-kvm")
        command += (f"--kopt={option}" for option in EMULATED_KERNEL)
        # The last one: all that follows is qemu's
        command += ("--qemu-opts", "-cpu", EMULATED_PROCESSOR)
    return command


def write_guest_scripts(machine: Machine, state: Path, command: list[str]) -> Path:
    """Writes what the guest runs into `state`, a folder that the guest can write to."""
    # A checkout below /tmp must stay visible; elsewhere the guest gets a /tmp of its own, without
    # what other programs have left in this machine's.
    below_tmp = ROOT.is_relative_to("/tmp")  # noqa: S108  # not a temporary file of ours
    script = state / "guest.sh"
    script.write_text(
        GUEST_SCRIPT.format(
            state=shlex.quote(str(state)),
            modules=" ".join(KERNEL_MODULES),
            host=HOST,
            writable=shlex.join(map(str, machine.writable)),
            hide_tmp="" if below_tmp else "mount -t tmpfs -o mode=1777 tmpfs /run/root/tmp",
            inside_out=INSIDE_OUT,
        )
    )
    (state / "command.sh").write_text(
        COMMAND_SCRIPT.format(
            state=shlex.quote(str(state)),
            path=f"{shlex.quote(str(ROOT))}/.venv/bin:/usr/local/sbin:/usr/local/bin:"
            "/usr/sbin:/usr/bin:/sbin:/bin",
            cwd=shlex.quote(str(Path.cwd())),
            command=shlex.join(command),
            inside_out=INSIDE_OUT,
        )
    )
    return script


@contextmanager
def running_guest(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """The guest as a process; it is gone when the block ends, however that happens."""
    environment = dict(os.environ)
    # virtme finds its own parts beside itself, and qemu and depmod where Debian puts them.
    environment["PATH"] = f"{ROOT}/.venv/bin:{environment['PATH']}:/usr/sbin:/sbin"
    process = subprocess.Popen(
        command,
        # Pipes, never files: qemu opens its outputs by name and would truncate a file each time.
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment,
        start_new_session=True,
    )
    share_as_nice(process.pid, os.nice(0))
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def copy_output(source: IO[bytes]) -> None:
    """Passes on what the command in the guest prints, line by line."""
    for line in source:
        sys.stdout.buffer.write(line.replace(b"\r\n", b"\n"))
        sys.stdout.buffer.flush()


def keep_console(source: IO[bytes], lines: collections.deque[str]) -> None:
    """Keeps the last lines of the guest's console for the case that something goes wrong."""
    for line in source:
        lines.append(line.decode(errors="replace").rstrip())


def run_once(machine: Machine, state: Path, command: list[str], deadline: float) -> int:
    """Boots the guest once and runs `command` in it; returns its exit status.

    Raises EmulatorError when there was no such status, OutOfTime when `deadline` (monotonic
    seconds) has passed.
    """
    script = write_guest_scripts(machine, state, command)
    console: collections.deque[str] = collections.deque(maxlen=40)
    started = time.monotonic()
    boot_deadline = started + BOOT_SECONDS[machine.accelerator]
    booted = False
    with running_guest(virtme_command(machine, script)) as guest:
        assert guest.stdout is not None  # noqa: S101  # Popen was given pipes
        assert guest.stderr is not None  # noqa: S101
        readers = [
            threading.Thread(target=copy_output, args=(guest.stdout,), daemon=True),
            threading.Thread(target=keep_console, args=(guest.stderr, console), daemon=True),
        ]
        for reader in readers:
            reader.start()
        while guest.poll() is None:
            now = time.monotonic()
            if not booted and (state / "booted").exists():
                booted = True
                note(f"the guest is up after {now - started:.0f} s ({machine.accelerator})")
            if now > deadline:
                raise OutOfTime
            if not booted and now > boot_deadline:
                break
            time.sleep(0.1)
    for reader in readers:
        reader.join(timeout=10)
    status = state / "status"
    if status.exists():
        return int(status.read_text())
    tail = "\n".join(f"    {line}" for line in console)
    where = f"({machine.accelerator}); the end of its console:\n{tail}"
    if booted:
        raise GuestDied(f"the guest died before the command ended {where}")
    raise EmulatorError(f"the guest did not boot {where}")


def compile_project() -> None:
    """Leaves byte code of the project beside it.

    The guest starts many Python processes, and compiling takes ten times as long in there.
    """
    packages = [str(path.parent) for path in ROOT.glob("*/__init__.py")]
    subprocess.run([sys.executable, "-m", "compileall", "-q", *packages], check=False)
    # pytest has its own byte code of tests
    subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-qq", "netns-tests"],
        cwd=ROOT,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": ""},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )


def accelerators(wanted: str) -> list[str]:
    """Which ways to try, in order."""
    if wanted != "auto":
        return [wanted]
    return ["kvm", "tcg"] if os.access("/dev/kvm", os.R_OK | os.W_OK) else ["tcg"]


def run_way(
    way: str, arguments: argparse.Namespace, writable: Sequence[Path], deadline: float
) -> int:
    """Runs the command with one accelerator; where an emulated guest dies in the middle, which is
    the emulator's fault as a rule, once more from the beginning, and says so."""
    for last in (way != "tcg", True):
        with tempfile.TemporaryDirectory(prefix="emulator-", dir=WORK) as folder:
            state = Path(folder)
            machine = Machine(way, arguments.cpus, arguments.memory, (state, *writable))
            try:
                return run_once(machine, state, arguments.command, deadline)
            except GuestDied as error:
                if last:
                    raise
                note(f"{error}\nin-emulator: all of it is run once more")
    raise AssertionError("unreachable: the last try returns or raises")


def note(text: str) -> None:
    print(f"in-emulator: {text}", file=sys.stderr, flush=True)


def run(arguments: argparse.Namespace) -> int:
    """Tries each accelerator until a guest has booted."""
    deadline = time.monotonic() + arguments.timeout
    WORK.mkdir(exist_ok=True)
    compile_project()
    ways = accelerators(arguments.accelerator)
    writable = [path.resolve() for path in arguments.writable]
    for index, way in enumerate(ways):
        try:
            return run_way(way, arguments, writable, deadline)
        except GuestDied:
            raise
        except EmulatorError as error:
            if index + 1 == len(ways):
                raise
            note(f"no guest with {way}; trying {ways[index + 1]}")
            if arguments.verbose:
                note(str(error))
    raise AssertionError("unreachable: the last way returns or raises")


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="netns-tests/in-emulator",
        description="Runs a command on an emulated machine whose kernel has WireGuard.",
        epilog="Example: netns-tests/in-emulator -- .venv/bin/pytest netns-tests -m kernel",
    )
    parser.add_argument("--timeout", type=float, default=1800, metavar="SECONDS")
    parser.add_argument(
        "--cpus",
        type=int,
        default=1,
        help="Linux rewrites its own code while it runs, and where several processors are emulated "
        "one was seen to run into the half of that, and the guest to die: better start two guests",
    )
    parser.add_argument("--memory", type=int, default=3072, metavar="MIB")
    parser.add_argument("--accelerator", choices=("auto", "kvm", "tcg"), default="auto")
    parser.add_argument(
        "--writable",
        type=Path,
        action="append",
        default=[],
        metavar="FOLDER",
        help="a folder of this machine that the guest may write to (can be given again)",
    )
    parser.add_argument("--verbose", action="store_true", help="say why an accelerator failed")
    parser.add_argument("command", nargs="+", metavar="COMMAND", help="what to run, after --")
    return parser.parse_args()


def main() -> int:
    arguments = parse_arguments()
    # Whoever ends this program politely wants the same as who presses Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments)
    except EmulatorError as error:
        print(f"in-emulator: error: {error}", file=sys.stderr)
        return EXIT_NO_GUEST
    except OutOfTime:
        print(
            f"in-emulator: error: not done within {arguments.timeout:.0f} s; the guest was ended",
            file=sys.stderr,
        )
        return EXIT_OUT_OF_TIME
    except KeyboardInterrupt:
        print("in-emulator: error: interrupted; the guest was ended", file=sys.stderr)
        return EXIT_INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
