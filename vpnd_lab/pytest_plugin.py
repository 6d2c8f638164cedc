"""The pytest plugin: labs in the tests of any project that has vpnd installed.

    async def test_two_sites(lab_factory):
        async with lab_factory("[sites.fra]\\n[sites.ams]") as lab:
            await lab.site("fra").run(["ping", "-c1", str(lab.site("ams").address())])

The test runs on trio, by pytest-trio (`trio_mode = true`, or `@pytest.mark.trio`; the extra
`vpnd[pytest]` brings it) or by `trio.run` in a plain test. A project without trio asks for
`blocking_lab_factory`:

    def test_two_sites(blocking_lab_factory):
        with blocking_lab_factory("[sites.fra]\\n[sites.ams]") as lab:
            lab.do(lambda lab: lab.site("fra").run(["ping", "-c1", "192.0.2.2"]))

Loaded in every run of pytest, so it imports nothing until a test asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from vpnd_lab.blocking import BlockingLab
    from vpnd_lab.lab import Lab
    from vpnd_lab.spec import LabSpec


class LabFactory:
    """Makes labs for one test: from a LabSpec, a lab file's Path, its text, or its content."""

    def __call__(
        self,
        spec: LabSpec | Path | str | Mapping[str, Any],
        *,
        start: Literal["network", "daemons", "links"] = "network",
        name: str | None = None,
    ) -> AbstractAsyncContextManager[Lab]:
        """A lab that stands for the length of an `async with`: see vpnd_lab.lab.open_lab.

        Raises LabFileError at once for what is wrong in the lab file.
        """
        from vpnd_lab.lab import open_lab

        return open_lab(_spec(spec), name=name, start=start)


class BlockingLabFactory:
    """The same for tests that do not run on trio."""

    def __call__(
        self,
        spec: LabSpec | Path | str | Mapping[str, Any],
        *,
        start: Literal["network", "daemons", "links"] = "network",
        name: str | None = None,
    ) -> AbstractContextManager[BlockingLab]:
        """A lab that stands for the length of a `with`: see vpnd_lab.blocking.open_lab.

        Raises LabFileError at once for what is wrong in the lab file.
        """
        from vpnd_lab.blocking import open_lab

        return open_lab(_spec(spec), name=name, start=start)


def _spec(spec: LabSpec | Path | str | Mapping[str, Any]) -> LabSpec:
    from vpnd_lab.spec import LabSpec

    if isinstance(spec, Path):
        return LabSpec.load(spec)
    if isinstance(spec, str):
        return LabSpec.parse(spec, name="test")
    if isinstance(spec, Mapping):
        return LabSpec.of(spec, name="test")
    return spec


def _skip_without_root() -> None:
    if os.geteuid() != 0:
        pytest.skip("a lab needs root, for its network namespaces")


@pytest.fixture
def blocking_lab_factory() -> BlockingLabFactory:
    """Makes labs for plain tests. The test is skipped without root."""
    _skip_without_root()
    return BlockingLabFactory()


@pytest.fixture
def lab_factory() -> LabFactory:
    """Makes labs. The test is skipped without root: a lab needs network namespaces."""
    _skip_without_root()
    # A lab ends with its `async with`, also where the test fails; one whose process was killed is
    # taken away by the next lab that starts.
    return LabFactory()
