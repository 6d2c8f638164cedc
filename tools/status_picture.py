"""Draws docs/status.svg from what `vpnctl status` prints in a lab of three real sites."""

from __future__ import annotations

import re
from pathlib import Path

import trio
from rich.console import Console
from rich.text import Text

from vpnd_lab.lab import open_lab
from vpnd_lab.spec import LabSpec

PICTURE = Path(__file__).parent.parent / "docs" / "status.svg"
LAB_FILE = """
[sites.fra]
[sites.ams]
[sites.lon]
[[links]]
sites = ["fra", "ams"]
[[links]]
sites = ["fra", "lon"]
"""
WIDTH = 118


async def status_of_a_hub() -> str:
    """The table as a person sees it, with one link whose far end went away."""
    async with open_lab(LabSpec.parse(LAB_FILE, name="picture"), start="links") as lab:
        fra = lab.site("fra")
        for peer in ("ams", "lon"):
            await fra.wait_state(peer, "active")
        async with lab.traffic("fra-host", "ams-host", rate=200, size=1000) as meter:
            await meter.wait_received(1000)
            await fra.vpnctl("peer", "rekey", "ams")
            await meter.wait_received(200)
        done = await fra.run(
            [
                "script",
                "-qec",
                f"stty cols {WIDTH}; {_vpnctl()} --socket /run/vpnd/control.sock status",
                "/dev/null",
            ],
            env={"TERM": "xterm-256color", "COLUMNS": str(WIDTH)},
        )
        return done.stdout


def _vpnctl() -> str:
    return str(Path(__file__).parent.parent / ".venv" / "bin" / "vpnctl")


def main() -> None:
    shown = trio.run(status_of_a_hub).replace("\r\n", "\n")
    print(shown)
    with open("/dev/null", "w", encoding="utf-8") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True)
        console.print(Text("$ vpnctl status"))
        console.print(Text.from_ansi(shown.strip()))
        picture = console.export_svg(title="fra")
    # Fonts from elsewhere are not ours to name, and a reader's viewer would fetch them
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    picture = re.sub(r"<!--.*?-->\s*", "", picture, flags=re.DOTALL)
    PICTURE.write_text(picture, encoding="utf-8")


if __name__ == "__main__":
    main()
