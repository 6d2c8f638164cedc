"""What gets installed is pinned, and the repository does not say from where.

Each machine has its own way to its packages (a mirror, a proxy, a folder of wheels); an address in
a committed file would go around it.
"""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.architecture.imports import ROOT

# In parts, so that this file does not hold what it looks for.
REGISTRY_HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"),
        ("pythonhosted", "org"),
        ("pypi", "python", "org"),
        ("deb", "debian", "org"),
        ("security", "debian", "org"),
        ("crates", "io"),
        ("proxy", "golang", "org"),
        ("registry", "npmjs", "org"),
        ("repo", "maven", "apache", "org"),
    )
]
FILES = ("requirements.txt", "requirements-liboqs.txt")
REQUIREMENT = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)(\[[^\]]*\])?==(?P<version>[^\s;\\]+)")


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares names."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[str]:
    """The entries of both files of pins, each with its hashes on one line, without comments."""
    text = "\n".join((ROOT / name).read_text(encoding="utf-8") for name in FILES)
    lines = text.replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip() and not line.strip().startswith("#")]


def pinned_versions() -> dict[str, str]:
    found: dict[str, str] = {}
    for entry in requirements():
        match = REQUIREMENT.match(entry)
        assert match, f"not pinned to one version: {entry[:80]}"
        found[normalised(match["name"])] = match["version"]
    return found


def tracked_files() -> list[str]:
    # Root may test somebody else's checkout: git would say "dubious ownership", and only for
    # reading names it has nothing to fear (no hook and no filter runs)
    git = ["git", "-c", f"safe.directory={ROOT}", "-c", "core.fsmonitor=false"]
    listed = subprocess.run(
        [*git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    )
    return [name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def test_every_pin_has_a_hash() -> None:
    for entry in requirements():
        assert "--hash=sha256:" in entry, f"no hash: {entry[:80]}"


def test_requirements_hold_no_address_and_no_option() -> None:
    for entry in requirements():
        assert "://" not in entry, entry
        assert not entry.startswith("-"), f"an option: {entry}"


def test_every_package_of_the_project_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pinned_versions()
    extras = project["optional-dependencies"]
    for wanted in [*project["dependencies"], *extras["dev"], *extras["pytest"]]:
        name = normalised(re.split(r"[\s<>=!~;\[]", wanted, maxsplit=1)[0])
        assert name in pinned, f"pyproject.toml wants {wanted}; run: make pins"


def test_extras_for_a_gateway_name_the_version_that_is_pinned() -> None:
    # dev is this project's, and pytest goes into the environments of others, with their own pins
    pinned = pinned_versions()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for extra, wanted in project["optional-dependencies"].items():
        if extra not in {"dev", "pytest"}:
            for package in wanted:
                match = REQUIREMENT.match(package)
                assert match, f"extra {extra}: {package} names no version"
                assert pinned[normalised(match["name"])] == match["version"]


@pytest.mark.parametrize("host", REGISTRY_HOSTS)
def test_no_file_names_a_package_registry(host: str) -> None:
    naming = [
        name for name in tracked_files() if host.encode() in (ROOT / name).read_bytes().lower()
    ]
    assert not naming, f"{host} stands in {naming}"


def test_no_lock_file_with_addresses() -> None:
    for name in tracked_files():
        if name.endswith((".lock", "-lock.json", "-lock.yaml", "npm-shrinkwrap.json", "go.sum")):
            assert b"://" not in (ROOT / name).read_bytes(), name
