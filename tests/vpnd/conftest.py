from __future__ import annotations

from pathlib import Path

import pytest

from tests.vpnd.config_files import Site


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)
