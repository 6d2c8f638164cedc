"""Where the way into namespaces is, as the daemon's two halves see it."""

from __future__ import annotations

import tun.namespace
import vpnd.namespaces
from tun.model import is_namespace_name
from vpnd.config_fields import MAX_NAME_BYTES, fits_name


def test_both_look_for_the_helper_in_one_place() -> None:
    assert vpnd.namespaces.HELPER_SOCKET == tun.namespace.HELPER_SOCKET


def test_a_name_that_the_configuration_takes_is_one_for_the_helper() -> None:
    for name in ("blue", "a" * MAX_NAME_BYTES, "a" * (MAX_NAME_BYTES + 1), "1.2-3_4", "..", ".a"):
        assert fits_name(name) == is_namespace_name(name)
