"""The pytest plugin: labs in the tests of any project that has vpnd installed.

    async def test_two_sites(lab_factory):
        async with lab_factory("[sites.fra]\\n[sites.ams]") as lab:
            await lab.site("fra").run(["ping", "-c1", str(lab.site("ams").address())])

The test runs on trio, by pytest-trio (`trio_mode = true`, or `@pytest.mark.trio`) or by `trio.run`
in a plain test. Loaded in every run of pytest, so it imports nothing until a test asks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest

if TYPE_CHECKING:
    from lab.lab import Lab
    from lab.spec import LabSpec


class LabFactory:
    """Makes labs for one test: from a LabSpec, a lab file's Path, its text, or its content."""

    def __call__(
        self,
        spec: LabSpec | Path | str | Mapping[str, Any],
        *,
        start: Literal["network", "daemons", "links"] = "network",
        name: str | None = None,
    ) -> AbstractAsyncContextManager[Lab]:
        """A lab that stands for the length of an `async with`: see lab.lab.open_lab.

        Raises LabFileError at once for what is wrong in the lab file.
        """
        from lab.lab import open_lab
        from lab.spec import LabSpec

        if isinstance(spec, Path):
            spec = LabSpec.load(spec)
        elif isinstance(spec, str):
            spec = LabSpec.parse(spec, name="test")
        elif isinstance(spec, Mapping):
            spec = LabSpec.of(spec, name="test")
        return open_lab(spec, name=name, start=start)


@pytest.fixture
def lab_factory() -> LabFactory:
    """Makes labs. The test is skipped without root: a lab needs network namespaces."""
    if os.geteuid() != 0:
        pytest.skip("a lab needs root, for its network namespaces")
    # A lab ends with its `async with`, also where the test fails; one whose process was killed is
    # taken away by the next lab that starts.
    return LabFactory()
