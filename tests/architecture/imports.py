"""What the modules of the project import, read from their source without running it."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def modules_of(package: str) -> dict[str, Path]:
    """Every module of `package` by dotted name. Raises LookupError if there is no such package."""
    folder = ROOT / package
    if not (folder / "__init__.py").is_file():
        raise LookupError(f"no package {package} below {ROOT}")
    return {_dotted_name(path): path for path in sorted(folder.rglob("*.py"))}


def module_path(name: str) -> Path | None:
    """The file of the project's module `name`, or None if it is not a module of the project."""
    base = ROOT.joinpath(*name.split("."))
    return next(
        (path for path in (base.with_suffix(".py"), base / "__init__.py") if path.is_file()), None
    )


def imported_by(path: Path) -> set[str]:
    """Every module that the file imports, also inside functions and for type checking only.

    `from kex import identity` counts as kex.identity, for that is what gets loaded;
    `from kex.identity import Identity` as kex.identity.
    """
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = _absolute(node, path)
            for alias in node.names:
                inner = f"{source}.{alias.name}"
                found.add(inner if module_path(inner) else source)
    return found


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if node.level == 0:
        return node.module or ""
    package = _dotted_name(path).split(".")
    if path.name != "__init__.py":
        package.pop()
    package = package[: len(package) - (node.level - 1)]
    return ".".join([*package, *([node.module] if node.module else [])])


def _dotted_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
