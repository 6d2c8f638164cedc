"""The way into the installed programs: they import what was installed, and nothing else.

PYTHONPATH belongs to whoever starts a program. A project with a folder `cli` of its own on it must
be able to start vpnctl, and the daemon must not import what somebody left there. So the programs
start in this module, whose name is nobody else's, and take PYTHONPATH off the path of imports
before they import more. `systemd/install` also has them start isolated (python -I), which keeps
PYTHONPATH from the few modules of the standard library that are imported before.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def vpnd() -> None:
    """The program `vpnd`."""
    import_only_what_is_installed()
    from vpnd.__main__ import main

    main()


def vpnctl() -> None:
    """The program `vpnctl`."""
    import_only_what_is_installed()
    from cli.main import main

    main()


def lab_kme() -> None:
    """The program `vpnd-lab-kme`."""
    import_only_what_is_installed()
    from vpnd_lab.kme.main import main

    main()


def wireguard_go() -> None:
    """The program `vpnd-wireguard-go`."""
    import_only_what_is_installed()
    from tun.wireguard_go import main

    main()


def nsfd() -> None:
    """The program `vpnd-nsfd`."""
    import_only_what_is_installed()
    from tun.nsfd import main

    main()


def import_only_what_is_installed() -> None:
    """Take PYTHONPATH off sys.path, and put the folder of this installation first."""
    installed = str(Path(__file__).resolve().parent)
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep) if not sys.flags.isolated else []
    foreign = {os.path.realpath(folder) for folder in named if folder}
    kept = [folder for folder in sys.path if os.path.realpath(folder) not in foreign]
    sys.path[:] = [installed, *(folder for folder in kept if folder != installed)]
