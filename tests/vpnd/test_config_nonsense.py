"""Nonsense in every field: always ConfigErrors that name file and key, never another exception."""

from __future__ import annotations

import datetime
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.examples import examples
from tests.vpnd.config_files import Site, problems_of, refusal, toml
from vpnd.config_model import (
    Defaults,
    ExternalKeys,
    NodeConfig,
    PeerSettings,
    Table,
    TunnelSettings,
)

MAIN, PEER = "main", "peer"

TABLES: list[tuple[str, tuple[str, ...], type[Table]]] = [
    (MAIN, ("node",), NodeConfig),
    (MAIN, ("defaults",), Defaults),
    (MAIN, ("tunnels", "backbone"), TunnelSettings),
    (PEER, (), PeerSettings),
    (PEER, ("external_keys",), ExternalKeys),
]
FIELDS = [(file, (*path, key)) for file, path, model in TABLES for key in model.model_fields] + [
    (MAIN, ("node",)),
    (MAIN, ("defaults",)),
    (MAIN, ("tunnels",)),
    (MAIN, ("tunnels", "x")),
]

WHOLE_TABLES = {("node",), ("defaults",), ("tunnels",), ("tunnels", "x"), ("external_keys",)}

# A field may take one of these by chance (an empty list of addresses); most take none
NONSENSE: list[Any] = [
    True,
    -1,
    0,
    2**63,
    -(2**200),
    10**4000,
    1.5,
    math.inf,
    math.nan,
    "",
    " ",
    ".",
    "..",
    "../../etc/passwd",
    "-rf",
    "\x00",
    "a\x00b",
    "a\nb",
    "a\x1b[31mb",
    "a\u202eb",
    "ä",
    "1" * 10_000,
    "/" + "a" * 5000,
    [],
    [""],
    [[]],
    [0],
    [True, "x", {"y": 1}],
    ["\x00"],
    [[["a"]]],
    {},
    {"": ""},
    {"\x00": 1},
    {"a": {"b": {"c": []}}},
    datetime.date(2026, 1, 1),
    datetime.datetime(2026, 1, 1, 12, 0),
]
# No field of the configuration is a number with a point, a date, or a list of lists
NEVER = [1.5, math.inf, math.nan, [[]], datetime.date(2026, 1, 1), {"": ""}, {"\x00": 1}]

SECRET = "vpnd-identity-v1 1 c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0MDA="


def put(site: Site, file: str, path: tuple[str, ...], value: Any) -> Path:
    """Set one value; the answer is the file that it stands in."""
    values = site.main if file == MAIN else site.peers["ams1"]
    for key in path[:-1]:
        values = values.setdefault(key, {})
    values[path[-1]] = value
    return site.path if file == MAIN else site.peer_path("ams1")


def check_refusal_names(site: Site, file: str, path: tuple[str, ...], value: Any) -> bool:
    """Load with one value changed; True if it was refused, with file and key."""
    changed = site.copy()
    where = put(changed, file, path, value)
    changed.write()
    errors = refusal(changed.path)
    if errors is None:
        return False
    if path == ("tunnels",):  # no tunnel at all is fine, but for the peer that names one
        where, path = changed.peer_path("ams1") if value == {} else where, ("tunnel",)
    assert any(
        problem.file == where and problem.key.startswith(".".join(path))
        for problem in errors.problems
    ), str(errors)
    for problem in errors.problems:
        assert problem.reason
        assert str(problem).isprintable()
        assert problem.hint.isprintable()
        assert len(str(problem)) < 1000
    return True


@pytest.mark.parametrize(("file", "path"), FIELDS, ids=str)
def test_nonsense_in_each_field(site: Site, file: str, path: tuple[str, ...]) -> None:
    for value in NONSENSE:
        refused = check_refusal_names(site, file, path, value)
        never = any(value is other for other in NEVER) or isinstance(value, float)
        if never and path != ("tunnels",):
            assert refused, value


def toml_values() -> st.SearchStrategy[Any]:
    scalars = (
        st.booleans()
        | st.integers(-(2**70), 2**70)
        | st.floats()
        | st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
        | st.dates()
        | st.sampled_from(["10.0.0.0/8", "[::1]:5", "1.2.3.4:5", "auto", "none", "off", "require"])
    )
    keys = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    return st.recursive(
        scalars,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    )


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@settings(max_examples=examples(300), deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(field=st.sampled_from(FIELDS), value=toml_values())
def test_any_value_in_any_field(
    folder: Path, field: tuple[str, tuple[str, ...]], value: Any
) -> None:
    check_refusal_names(Site(folder), *field, value)


@settings(max_examples=examples(200), deadline=None)
@given(content=st.binary(max_size=200), peer=st.booleans())
@example(content=b"\xff\xfe", peer=False)
@example(content=b"a = " + b"[" * 5000, peer=True)
@example(content=b"a = " + b"9" * 5000, peer=True)
@example(content=b"a = 1\na = 2\n", peer=False)
@example(content="\ufeff[node]\n".encode(), peer=False)
def test_any_bytes_as_a_file(folder: Path, content: bytes, peer: bool) -> None:
    site = Site(folder)
    site.write()
    path = site.peer_path("ams1") if peer else site.path
    path.write_bytes(content)
    assert any(problem.file == path for problem in problems_of(site.path))


@settings(max_examples=examples(300), deadline=None)
@given(data=st.data())
def test_any_typing_error_in_a_file(folder: Path, data: st.DataObject) -> None:
    site = Site(folder)
    site.write()
    path = data.draw(st.sampled_from([site.path, site.peer_path("ams1")]))
    text = path.read_text()
    position = data.draw(st.integers(0, len(text) - 1))
    instead = data.draw(st.text(st.characters(exclude_categories=["Cs"]), max_size=2))
    site.write_text(path, text[:position] + instead + text[position + 1 :])
    errors = refusal(site.path)
    assert errors is None or all(problem.file is not None for problem in errors.problems)


@pytest.mark.parametrize(("file", "path"), FIELDS, ids=str)
def test_a_secret_in_the_wrong_place_is_not_repeated(
    site: Site, file: str, path: tuple[str, ...]
) -> None:
    seed = SECRET.split()[2]
    for value in (SECRET, seed, [SECRET], [seed], {seed: seed}, {SECRET: 1}):
        if path == ("wireguard_key",) and value == seed:
            continue  # 32 bytes in Base64 are what a WireGuard key is: nobody can tell
        changed = site.copy()
        put(changed, file, path, value)
        text = "\n".join(f"{problem} {problem.hint}" for problem in changed.problems())
        assert seed[:20] not in text


def test_a_secret_beside_a_syntax_error_is_not_repeated(site: Site) -> None:
    site.write()
    seed = SECRET.split()[2].rstrip("=")
    for text in (
        f'identity = "{seed}',
        f"{seed}",
        f"{seed} = 1\n{seed} = 2",
        f"[{seed}]\n[{seed}]",
    ):
        site.write_text(site.peer_path("ams1"), text)
        assert seed[:20] not in "\n".join(map(str, problems_of(site.path)))


def test_everything_wrong_is_told_at_once(site: Site) -> None:
    """One nonsense value in every field of every table, and each is named."""
    fields = [(file, path) for file, path in FIELDS if path not in WHOLE_TABLES]
    for file, path in fields:
        put(site, file, path, 1.5)
    problems = site.problems()
    for file, path in fields:
        where = site.path if file == MAIN else site.peer_path("ams1")
        assert any(one.file == where and one.key == ".".join(path) for one in problems), path


def test_the_text_that_these_tests_write_is_what_they_mean(site: Site) -> None:
    text = toml({"a": 'x"\\\n', "b": {"c": [1, {"d": True}]}, "e": math.inf})
    assert "\\U00000022" in text
    site.load()
