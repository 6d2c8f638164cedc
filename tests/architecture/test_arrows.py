"""The arrows of docs/architecture.md that are said best as "this and nothing else".

The others ("this never") are contracts of import-linter in pyproject.toml.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.architecture.imports import ROOT, imported_by, module_path, modules_of

# kex is a function from bytes, times and random bytes to bytes and events. What it may import can
# be counted, so it is: whoever needs another module adds it here and says in the commit why the
# key exchange stays pure with it.
KEX_STANDARD_LIBRARY = {
    "__future__",
    "abc",
    "base64",
    "binascii",
    "bisect",
    "collections",
    "contextlib",
    "copy",
    "dataclasses",
    "enum",
    "functools",
    "hashlib",
    "heapq",
    "hmac",
    "io",
    "ipaddress",
    "itertools",
    "math",
    "operator",
    "re",
    "string",
    "struct",
    "types",
    "typing",
}
KEX_LIBRARIES = {"cbor2", "cryptography", "nacl"}

# Names that reach the system without any import.
IMPURE_BUILTINS = {"open", "print", "input", "breakpoint", "__import__", "eval", "exec"}
# With these the libraries above draw random bytes from the system themselves:
# `X25519PrivateKey.generate()`, `AESGCM.generate_key(…)`, `nacl.bindings.randombytes(…)`.
SELF_RANDOM_CALLS = {"generate", "generate_key", "generate_parameters", "randombytes"}

# The command line is a client of the control API. Besides its types it needs what works without a
# daemon: to check a configuration, to make and show an identity, to build a lab.
CLI_MAY_IMPORT = (
    "vpnd.api",
    "vpnd.config",
    "vpnd.identity_store",
    "vpnd.link_record",
    "vpnd.host_check",
    "kex.identity",
    "vpnd_lab.commands",
)


def impure_calls(path: Path) -> Iterator[str]:
    """Each call in the file that reaches the system or draws random bytes, with its line."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        match node:
            case ast.Call(func=ast.Name(id=name)) if name in IMPURE_BUILTINS | SELF_RANDOM_CALLS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: {name}(…)"
            case ast.Call(func=ast.Attribute(attr=name)) if name in SELF_RANDOM_CALLS:
                yield f"{path.relative_to(ROOT)}:{node.lineno}: ….{name}(…)"


@pytest.mark.parametrize("module", modules_of("kex"))
def test_kex_imports_only_what_is_pure(module: str) -> None:
    allowed = {"kex", *KEX_STANDARD_LIBRARY, *KEX_LIBRARIES}
    foreign = {
        name
        for name in imported_by(modules_of("kex")[module])
        if name.partition(".")[0] not in allowed or name.startswith("nacl.utils")
    }
    assert not foreign, f"{module} imports what kex may not import: {sorted(foreign)}"


@pytest.mark.parametrize("module", modules_of("kex"))
def test_kex_neither_reaches_the_system_nor_draws_random_bytes(module: str) -> None:
    calls = list(impure_calls(modules_of("kex")[module]))
    assert not calls, "\n".join(calls)


def test_cli_is_a_client() -> None:
    # With each of these, what it is itself made of: the reader of a configuration and its errors.
    allowed = set[str]().union(*map(with_all_it_imports, CLI_MAY_IMPORT))
    for module, path in modules_of("cli").items():
        foreign = {
            name
            for name in imported_by(path)
            if name.partition(".")[0] in {"kex", "tun", "vpnd", "vpnd_lab"} and name not in allowed
        }
        assert not foreign, f"{module} imports {sorted(foreign)}; it may import {sorted(allowed)}"


def test_what_cli_shares_with_the_daemon_runs_no_tasks() -> None:
    # A command that needs no daemon must not load one: neither its tasks nor its interfaces.
    shared = set[str]().union(*map(with_all_it_imports, CLI_MAY_IMPORT[:-1]))
    for module in sorted(shared):
        path = module_path(module)
        assert path is not None
        heavy = {"trio", "hypercorn", "starlette", "httpcore", "pyroute2", "tun", "vpnd_lab"}
        found = {name for name in imported_by(path) if name.partition(".")[0] in heavy}
        assert not found, f"vpnctl would load {sorted(found)} through {module}"


def test_the_api_types_cost_nothing_to_import() -> None:
    # vpnctl imports them at every start and answers in 0.3 s: nothing but the standard library,
    # neither in the module itself nor in the packages around it.
    for module in with_all_it_imports("vpnd.api") | {"vpnd"}:
        path = module_path(module)
        assert path is not None
        foreign = {
            name
            for name in imported_by(path)
            if name.partition(".")[0] not in sys.stdlib_module_names
            and name.partition(".")[0] != "vpnd"
        }
        assert not foreign, f"{module} imports {sorted(foreign)}"


def with_all_it_imports(module: str) -> set[str]:
    """The project's modules that get loaded with `module`, itself among them."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = module_path(name)
        if path is None or name in found:
            continue
        found.add(name)
        waiting += imported_by(path)
    assert found, f"there is no module {module}"
    return found
