"""[key_sources.NAME] in vpnd.toml: what it may hold, and what is said of everything else."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.vpnd.config_files import Site, refusal
from tests.vpnd.keysource.authority import Authority
from tests.vpnd.test_config_nonsense import NONSENSE
from vpnd.config import load_config
from vpnd.config_diff import described, diff, needs_restart
from vpnd.config_errors import ConfigErrors, ConfigProblem
from vpnd.config_key_sources import FileSourceConfig, QkdSourceConfig, SkipSourceConfig


@pytest.fixture
def site(tmp_path: Path, sae_files: dict[str, str]) -> Site:
    found = Site(tmp_path)
    key = tmp_path / "shared.key"
    with os.fdopen(os.open(key, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        file.write(os.urandom(32))
    found.main["key_sources"] = {
        "kme-fra": {
            "type": "qkd",
            "urls": ["https://kme1.fra.example:8443", "https://[2001:db8::1]/qkd/"],
            "sae": "sae-fra1",
            **sae_files,
        },
        "cisco": {"type": "skip", "urls": "https://kp.fra.example", **sae_files},
        "shared": {"type": "file", "file": str(key)},
    }
    return found


def problems(site: Site) -> list[ConfigProblem]:
    site.write()
    with pytest.raises(ConfigErrors) as refused:
        load_config(site.path)
    return list(refused.value.problems)


def test_three_sources(site: Site) -> None:
    site.write()
    found = load_config(site.path).key_sources
    assert list(found) == ["kme-fra", "cisco", "shared"]
    kme = found["kme-fra"]
    assert isinstance(kme, QkdSourceConfig)
    assert kme.urls == ("https://kme1.fra.example:8443", "https://[2001:db8::1]/qkd")
    assert (kme.key_size, kme.verbs, kme.prefetch, kme.quirks) == (256, "post", True, ())


WRONG: list[tuple[str, dict[str, Any], str, str]] = [
    ("an unknown key", {"url": "https://k"}, "url", "unknown key"),
    ("an unknown type", {"type": "qdk"}, "type", '"qdk" is not known'),
    ("no type", {"type": None}, "type", "is missing"),
    ("no urls", {"urls": []}, "urls", "is empty"),
    ("no TLS", {"urls": ["http://k:8443"]}, "urls[0]", "has no TLS"),
    ("no URL", {"urls": ["k:8443"]}, "urls[0]", "is not a URL of https"),
    ("a bad port", {"urls": ["https://k:99999"]}, "urls[0]", "is not a URL"),
    ("a password", {"urls": ["https://u:p@k"]}, "urls[0]", "holds a user name or a password"),
    ("a query", {"urls": ["https://k/?a=b"]}, "urls[0]", "is more than host, port and path"),
    ("a bad host", {"urls": ["https://a b"]}, "urls[0]", "is not a host name"),
    ("one twice", {"urls": ["https://k", "https://k/"]}, "urls", "names one twice"),
    ("no SAE", {"sae": ""}, "sae", "has 0 bytes"),
    ("a long SAE", {"sae": "a" * 301}, "sae", "has 301 bytes"),
    ("a step in a path", {"sae": ".."}, "sae", "is a step in a path, and no name"),
    ("verbs", {"verbs": "put"}, "verbs", "is not known"),
    ("half bytes", {"key_size": 257}, "key_size", "257 bits are no whole bytes"),
    ("too short", {"key_size": 64}, "key_size", "is out of range"),
    ("a quirk", {"quirks": ["size-in-byte"]}, "quirks[0]", "is not known"),
    ("a pin", {"pin": "sha1:00"}, "pin", "is not a pin"),
    ("a time", {"call_timeout": 0}, "call_timeout", "is out of range"),
    ("a time of text", {"read_timeout": "5s"}, "read_timeout", "must be a number"),
    ("a limit", {"max_keys_per_minute": 0}, "max_keys_per_minute", "is out of range"),
    ("yes", {"prefetch": "yes"}, "prefetch", "must be true or false"),
    ("a relative file", {"key": "sae.key"}, "key", "is not a path from the root"),
    ("no such file", {"ca": "/no/such/ca.pem"}, "ca", "/no/such/ca.pem does not exist"),
]


@pytest.mark.parametrize(
    ("changed", "key", "says"), [one[1:] for one in WRONG], ids=[one[0] for one in WRONG]
)
def test_what_is_wrong_is_told_with_its_place(
    site: Site, changed: dict[str, Any], key: str, says: str
) -> None:
    table = site.main["key_sources"]["kme-fra"]
    table.update(changed)
    for name in [name for name, value in table.items() if value is None]:
        del table[name]
    (problem,) = problems(site)
    assert problem.file == site.path
    assert problem.key == f"key_sources.kme-fra.{key}"
    assert says in problem.reason


FIELDS = [
    (name, field)
    for name, model in (
        ("kme-fra", QkdSourceConfig),
        ("cisco", SkipSourceConfig),
        ("shared", FileSourceConfig),
    )
    for field in model.model_fields
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "field"), FIELDS, ids=str)
def test_nonsense_in_each_field(site: Site, name: str, field: str) -> None:
    for value in NONSENSE:
        changed = site.copy()
        changed.main["key_sources"][name][field] = value
        changed.write()
        errors = refusal(changed.path)
        for problem in () if errors is None else errors.problems:
            assert problem.key.startswith(f"key_sources.{name}")
            assert str(problem).isprintable()
            assert problem.hint.isprintable()
            assert len(str(problem)) < 1000


def test_a_status_that_is_not_asked_for_has_no_kme_id(site: Site) -> None:
    site.main["key_sources"]["kme-fra"].update(quirks=["no-status"], kme_id="KME-1")
    (problem,) = problems(site)
    assert problem.key == "key_sources.kme-fra"
    assert problem.hint


@pytest.mark.parametrize("name", ["kme-fra", "shared"])
def test_a_secret_that_others_can_read(site: Site, name: str) -> None:
    table = site.main["key_sources"][name]
    key = "key" if name == "kme-fra" else "file"
    Path(table[key]).chmod(0o644)
    if name == "kme-fra":
        del site.main["key_sources"]["cisco"]  # it has the same key
    (problem,) = problems(site)
    assert problem.key == f"key_sources.{name}.{key}"
    assert "has mode 0644" in problem.reason
    assert "chmod 600" in problem.hint


def test_a_template_for_a_key(site: Site) -> None:
    Path(site.main["key_sources"]["shared"]["file"]).write_bytes(b"changeme\n")
    (problem,) = problems(site)
    assert problem.key == "key_sources.shared.file"
    assert "make one:" in problem.hint


def test_a_certificate_of_another_key(site: Site, authority: Authority) -> None:
    del site.main["key_sources"]["cisco"]
    Path(site.main["key_sources"]["kme-fra"]["certificate"]).write_bytes(
        authority.issue("x").certificate
    )
    (problem,) = problems(site)
    assert problem.key == "key_sources.kme-fra.certificate"
    assert "does not belong to the key" in problem.reason


def test_an_expired_certificate_keeps_no_daemon_from_starting(
    site: Site, authority: Authority
) -> None:
    table = site.main["key_sources"]["kme-fra"]
    del site.main["key_sources"]["cisco"]
    issued = authority.issue("x", valid_from=-9, valid_until=-2)
    issued.write(Path(table["certificate"]), Path(table["key"]))
    site.write()
    (note,) = load_config(site.path).notes
    assert "expired on" in note.reason
    assert note.key == "key_sources.kme-fra.certificate"


@pytest.mark.parametrize("value", [[], 1, "x"])
def test_no_tables(site: Site, value: object) -> None:
    site.main["key_sources"] = value
    (problem,) = problems(site)
    assert (problem.key, problem.reason[:14]) == ("key_sources", "must be tables")


def test_a_reload_takes_changes_of_sources(site: Site) -> None:
    site.write()
    old = load_config(site.path)
    site.main["key_sources"]["kme-fra"]["max_keys_per_minute"] = 7
    site.main["key_sources"]["second"] = site.main["key_sources"].pop("cisco")
    site.write()
    new = load_config(site.path)
    found = diff(old, new).key_sources
    assert (found.added, found.removed) == (("second",), ("cisco",))
    assert dict(found.changed) == {"kme-fra": ("max_keys_per_minute",)}
    assert needs_restart(old, new) == ()
    changes = {(one["what"], one["name"]): one["change"] for one in described(old, new)}
    assert changes == {
        ("key source", "cisco"): "removed",
        ("key source", "second"): "added",
        ("key source", "kme-fra"): "changed",
    }


def test_a_source_becomes_one_of_another_type(site: Site) -> None:
    site.write()
    old = load_config(site.path)
    site.main["key_sources"]["cisco"] = site.main["key_sources"]["shared"]
    site.write()
    changed = diff(old, load_config(site.path)).key_sources.changed["cisco"]
    assert {"type", "file", "urls"} <= set(changed)
    assert described(old, load_config(site.path))
