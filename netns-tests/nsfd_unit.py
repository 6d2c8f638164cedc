"""Stands in for vpnd-nsfd.socket and vpnd-nsfd.service: listens, and starts the helper on demand.

As the unit has it: an unprivileged user, CAP_SYS_ADMIN and no other capability. systemd itself is
in test_systemd.py.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from tun.namespace import HELPER_SOCKET

USER = 65534


def main() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(str(HELPER_SOCKET))
        os.chown(HELPER_SOCKET, USER, USER)
        HELPER_SOCKET.chmod(0o600)
        listener.listen()
        print("ready", flush=True)
        while True:
            select.select([listener], [], [])
            process = os.fork()
            if process == 0:
                start(listener)
            if os.waitpid(process, 0)[1] != 0:
                sys.exit("vpnd-nsfd failed")


def start(listener: socket.socket) -> None:
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="1")
    limits = [
        f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs",
        "--inh-caps=-all,+sys_admin", "--ambient-caps=-all,+sys_admin",
        "--bounding-set=-all,+sys_admin",
    ]  # fmt: skip
    command = ["setpriv", *limits, sys.executable, "-m", "tun.nsfd"]
    os.execvp("setpriv", command)  # noqa: S606  # no shell is wanted: the number has to stay


if __name__ == "__main__":
    main()
