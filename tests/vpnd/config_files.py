"""A node's configuration on disk, for tests: valid until a test changes it."""

from __future__ import annotations

import copy
import datetime
import math
from pathlib import Path
from typing import Any

from kex.identity import Fingerprint
from vpnd.config import Config, load_config
from vpnd.config_errors import ConfigErrors, ConfigProblem

AMS1 = Fingerprint.of(1, b"ams1").text()
LON1 = Fingerprint.of(1, b"lon1").text()
LON1_NEXT = Fingerprint.of(2, b"lon1").text()

Values = dict[str, Any]


class Site:
    """vpnd.toml and peers.d in a folder; `main` and `peers` are what will be written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / "vpnd.toml"
        self.peers_dir = folder / "peers.d"
        self.state_dir = folder / "state"
        self.main: Values = {
            "node": {
                "name": "fra1",
                "listen": ["[::]:51821"],
                "state_dir": str(self.state_dir),
                "runtime_dir": str(folder / "run"),
            },
            "tunnels": {
                "backbone": {
                    "interface": "wg-backbone",
                    "listen_port": 51820,
                    "addresses": ["10.255.0.1/24", "fd00:255::1/64"],
                }
            },
        }
        self.peers: dict[str, Values] = {
            "ams1": {
                "identity": AMS1,
                "endpoint": "ams1.example.net:51821",
                "tunnel": "backbone",
                "allowed_ips": ["10.255.0.2/32", "fd00:255::2/128", "10.20.0.0/16"],
            }
        }

    def copy(self) -> Site:
        """One that can be changed without changing this one."""
        other = Site(self.folder)
        other.main = copy.deepcopy(self.main)
        other.peers = copy.deepcopy(self.peers)
        return other

    def peer_path(self, name: str) -> Path:
        return self.peers_dir / f"{name}.toml"

    def write(self) -> None:
        self.peers_dir.mkdir(mode=0o755, exist_ok=True)
        self.write_text(self.path, toml(self.main))
        for name, values in self.peers.items():
            self.write_text(self.peer_path(name), toml(values))

    @staticmethod
    def write_text(path: Path, text: str) -> None:
        path.write_text(text, encoding="utf-8", newline="")
        path.chmod(0o644)

    def load(self) -> Config:
        self.write()
        return load_config(self.path)

    def problems(self) -> tuple[ConfigProblem, ...]:
        """What is wrong; fails the test if nothing is."""
        self.write()
        return problems_of(self.path)


def refusal(path: Path) -> ConfigErrors | None:
    """Why it is not accepted; None if it is. Any other exception is a bug, and goes up."""
    try:
        load_config(path)
    except ConfigErrors as errors:
        return errors
    return None


def problems_of(path: Path) -> tuple[ConfigProblem, ...]:
    errors = refusal(path)
    assert errors is not None, "the configuration was accepted"
    assert errors.problems
    return errors.problems


def problem_at(problems: tuple[ConfigProblem, ...], key: str) -> ConfigProblem:
    """The one problem with this key."""
    found = [problem for problem in problems if problem.key == key]
    assert len(found) == 1, [str(problem) for problem in problems]
    return found[0]


def toml(values: Values, path: tuple[str, ...] = ()) -> str:
    """Any values as TOML text; tables that stand directly in tables get headers."""
    lines = [
        f"{_string(key)} = {_value(value)}"
        for key, value in values.items()
        if not isinstance(value, dict)
    ]
    for key, value in values.items():
        if isinstance(value, dict):
            inner = (*path, key)
            lines.append(f"[{'.'.join(map(_string, inner))}]")
            lines.append(toml(value, inner))
    return "\n".join(lines) + "\n"


def _value(value: object) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return "nan"
            return f"{value:+}" if math.isinf(value) else repr(value)
        case str():
            return _string(value)
        case list():
            return "[" + ", ".join(map(_value, value)) + "]"
        case dict():
            inner = (f"{_string(key)} = {_value(item)}" for key, item in value.items())
            return "{" + ", ".join(inner) + "}"
        case datetime.date():
            return value.isoformat()
    raise TypeError(value)


def _string(text: str) -> str:
    return '"' + "".join(c if c.isalnum() else f"\\U{ord(c):08X}" for c in text) + '"'
