"""What stands behind `vpnctl lab up/exec/status/down`, and the plugin in another project."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from vpnd_lab import LabError, LabFileError, commands

ROOT = Path(__file__).resolve().parent.parent
pytestmark = pytest.mark.netns


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A folder for labs, out of the way of other tests' cleaning; empty again after a failure."""
    yield tmp_path / "labs"
    for left in commands.status(root=tmp_path / "labs"):
        commands.down(left["name"], root=tmp_path / "labs")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "two-sites.toml"
    path.write_text("[sites.fra]\n[sites.ams]\n")
    return path


def test_up_exec_status_down(root: Path, file: Path) -> None:
    # In a process of its own: the lab must stand when that has ended.
    program = "import sys; from vpnd_lab import commands; commands.up(sys.argv[1], start='network')"
    env = {**os.environ, "VPND_LAB_ROOT": str(root)}
    subprocess.run([sys.executable, "-Werror", "-c", program, str(file)], env=env, check=True)
    try:
        (shown,) = commands.status(root=root)
        assert (shown["name"], shown["state"]) == ("two-sites", "standing")
        nodes = {node["name"]: node for node in shown["nodes"]}
        assert set(nodes) == {"fra", "ams", "internet", "fra-host", "ams-host"}
        assert all(node["alive"] for node in nodes.values())
        assert nodes["fra"]["addresses"][0] == "198.18.0.2/24"
        ping = ["ping", "-c1", "-W5", "-q", "198.18.1.2"]
        assert commands.exec("two-sites", "fra", ping, root=root) == 0
        assert commands.exec("two-sites", "fra", ["sh", "-c", "exit 9"], root=root) == 9
        assert commands.exec("two-sites", "fra", ["sh", "-c", "kill -9 $$"], root=root) == 137
        with pytest.raises(LabError, match="no node berlin"):
            commands.exec("two-sites", "berlin", ["true"], root=root)
        with pytest.raises(LabError, match=r"already a lab two-sites .*standing"):
            commands.up(file, start="network", root=root)
        assert commands.up(file, name="more", start="network", root=root)["name"] == "more"
        commands.down("more", root=root)
    finally:
        commands.down("two-sites", root=root)
    assert commands.status(root=root) == []
    assert not root.exists()
    for refused in (
        lambda: commands.down("two-sites", root=root),
        lambda: commands.exec("two-sites", "fra", ["true"], root=root),
    ):
        with pytest.raises(LabError, match="there is no lab two-sites"):
            refused()
    assert not root.exists()


def test_a_bad_file_makes_nothing(root: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.toml").write_text("[site.fra]\n[sites.ams]\nhosts = 3\n")
    with pytest.raises(LabFileError) as caught:
        commands.up(tmp_path / "bad.toml", root=root)
    assert len(caught.value.problems) == 2
    assert not root.exists()


def test_the_example_of_a_harness(tmp_path: Path) -> None:
    """A project with folders `lab` and `cli` of its own, on PYTHONPATH: all of it is its own."""
    project = tmp_path / "harness"
    shutil.copytree(ROOT / "docs" / "examples" / "harness", project)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-Werror", "-pno:cacheprovider"],
        cwd=project,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_plugin_in_another_project(tmp_path: Path) -> None:
    (tmp_path / "test_other.py").write_text(
        """
import pytest

@pytest.mark.trio
async def test_mine(lab_factory):
    async with lab_factory({"sites": {"fra": {}, "ams": {}}}) as lab:
        await lab.site("fra").run(["ping", "-c1", "-W5", str(lab.site("ams").address(6))])

def test_bad(lab_factory):
    lab_factory("[sites.fra]\\ncolour = 3")
"""
    )
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-Werror", "-pno:cacheprovider", str(tmp_path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "sites.fra.colour: is not a key of a lab file here; remove it" in done.stdout
