"""Labs: sites, routers, links and client hosts in network namespaces, with real daemons.

    async with open_lab(LabSpec.parse("[sites.fra]\\n[sites.ams]")) as lab:
        await lab.site("fra").run(["ping", "-c1", str(lab.site("ams").address(6))])

The library behind `vpnctl lab`, the project's own network tests, and other people's harnesses: see
vpnd_lab.spec for the lab file, vpnd_lab.lab for a running lab, vpnd_lab.blocking for programs that
do not use trio, vpnd_lab.meter for measuring traffic, vpnd_lab.capture for what passes an
interface, vpnd_lab.external_keys for key managers, vpnd_lab.pytest_plugin for the fixtures.

Names are looked up when they are asked for: pytest loads the plugin in every run of every project
where vpnd is installed, and the traffic processes are to stay small.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vpnd_lab.capture import Capture, Seen
    from vpnd_lab.errors import (
        CommandFailed,
        DaemonFailed,
        LabError,
        LabFileError,
        Problem,
        WaitTimeout,
    )
    from vpnd_lab.external_keys import KeyManager
    from vpnd_lab.lab import Lab, open_lab
    from vpnd_lab.meter import FlowReport, Mark, Meter, Report
    from vpnd_lab.node import Completed, Node
    from vpnd_lab.site import Site
    from vpnd_lab.spec import LabSpec

_MODULES = {
    "vpnd_lab.capture": ("Capture", "Seen"),
    "vpnd_lab.errors": (
        "CommandFailed",
        "DaemonFailed",
        "LabError",
        "LabFileError",
        "Problem",
        "WaitTimeout",
    ),
    "vpnd_lab.external_keys": ("KeyManager",),
    "vpnd_lab.lab": ("Lab", "open_lab"),
    "vpnd_lab.meter": ("FlowReport", "Mark", "Meter", "Report"),
    "vpnd_lab.node": ("Completed", "Node"),
    "vpnd_lab.site": ("Site",),
    "vpnd_lab.spec": ("LabSpec",),
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
