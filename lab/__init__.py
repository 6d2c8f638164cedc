"""Labs: sites, routers, links and client hosts in network namespaces, with real daemons.

    async with open_lab(LabSpec.parse("[sites.fra]\\n[sites.ams]")) as lab:
        await lab.site("fra").run(["ping", "-c1", str(lab.site("ams").address(6))])

The library behind `vpnctl lab`, the project's own network tests, and other people's harnesses: see
lab.spec for the lab file, lab.lab for a running lab, lab.meter for measuring traffic,
lab.capture for what passes an interface, lab.external_keys for key managers, lab.pytest_plugin for
the fixture.

Names are looked up when they are asked for: pytest loads the plugin in every run of every project
where vpnd is installed, and the traffic processes are to stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lab.capture import Capture, Seen
    from lab.errors import (
        CommandFailed,
        DaemonFailed,
        LabError,
        LabFileError,
        Problem,
        WaitTimeout,
    )
    from lab.external_keys import KeyManager
    from lab.lab import Lab, open_lab
    from lab.meter import FlowReport, Mark, Meter, Report
    from lab.node import Completed, Node
    from lab.site import Site
    from lab.spec import LabSpec

_MODULES = {
    "lab.capture": ("Capture", "Seen"),
    "lab.errors": (
        "CommandFailed",
        "DaemonFailed",
        "LabError",
        "LabFileError",
        "Problem",
        "WaitTimeout",
    ),
    "lab.external_keys": ("KeyManager",),
    "lab.lab": ("Lab", "open_lab"),
    "lab.meter": ("FlowReport", "Mark", "Meter", "Report"),
    "lab.node": ("Completed", "Node"),
    "lab.site": ("Site",),
    "lab.spec": ("LabSpec",),
}

__all__ = [
    "Capture",
    "CommandFailed",
    "Completed",
    "DaemonFailed",
    "FlowReport",
    "KeyManager",
    "Lab",
    "LabError",
    "LabFileError",
    "LabSpec",
    "Mark",
    "Meter",
    "Node",
    "Problem",
    "Report",
    "Seen",
    "Site",
    "WaitTimeout",
    "open_lab",
]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
