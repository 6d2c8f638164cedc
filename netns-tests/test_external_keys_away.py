"""Key managers that are away, slow, or shown the wrong certificate, at each end of a link.

The lab is that of backbone.py; what has to come of a row, at both ends of a link in `require` and
of one in `prefer`, is in broken_kme.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import pytest
from backbone import FAR, HUB, Backbone, in_a_thread
from broken_kme import (
    CHECKS,
    Tell,
    both_fail,
    fault,
    initiator_fails,
    nothing_fails,
    row,
    told,
)
from report import Case

pytestmark = [pytest.mark.netns, pytest.mark.kernel_long, pytest.mark.long]


@pytest.fixture(scope="module")
def backbone() -> Iterator[Backbone]:
    with in_a_thread() as running:
        yield running


def shows(kind: Any) -> Tell:
    """The key manager shows such a certificate."""
    return told(lambda kme: kme.certificate(kind))


def client(kind: Any) -> Tell:
    """The site's own certificate is replaced by such a one, while the daemon runs."""

    async def tell(backbone: Backbone, site: str) -> None:
        backbone.lab.site(site).renew_certificate(kind)

    return tell


async def cut_off(backbone: Backbone, site: str) -> None:
    await backbone.cut_off(site)


async def revoke(backbone: Backbone, site: str) -> None:
    """The key manager knows this application no longer."""
    await backbone.kme(site).know(f"sae-{site}", None)


async def remove_files(backbone: Backbone, site: str) -> None:
    """The site's certificate is deleted."""
    (backbone.lab.site(site).folder / "etc" / "kme" / "sae.pem").unlink()


AWAY: Final = {
    "refuses-connections": (told(lambda kme: kme.listener("down")), "source_unreachable"),
    "killed": (told(lambda kme: kme.kill()), "source_unreachable"),
    "certificate-expired": (shows("expired"), "source_certificate"),
    "certificate-not-yet-valid": (shows("not-yet-valid"), "source_certificate"),
    "certificate-wrong-ca": (shows("wrong-ca"), "source_certificate"),
    "certificate-wrong-name": (shows("wrong-name"), "source_certificate"),
    "own-certificate-expired": (client("expired"), "source_certificate"),
    "own-certificate-not-yet-valid": (client("not-yet-valid"), "source_certificate"),
    "own-certificate-wrong-ca": (client("wrong-ca"), "source_tls"),
    "own-certificate-wrong-name": (client("wrong-name"), "source_unauthorized"),
    "own-certificate-revoked": (revoke, "source_unauthorized"),
    "own-certificate-removed": (remove_files, "source_file"),
    "answer-lost": (fault("answer-lost"), "source_tls"),
}
NOT_ASKED: Final = {
    ("initiator", f"own-certificate-{what}") for what in ("expired", "not-yet-valid", "removed")
}
"""Where the key manager is not even asked: what is told is the name of the file."""


@pytest.mark.parametrize("name", AWAY)
@pytest.mark.parametrize("end", CHECKS)
def test_a_key_manager_that_cannot_be_used(
    backbone: Backbone, case: Case, end: str, name: str
) -> None:
    tell, code = AWAY[name]
    if (end, name) in NOT_ASKED:
        row(backbone, initiator_fails, case, tell, code, names="sae.pem")
    else:
        row(backbone, CHECKS[end], case, tell, code)


@pytest.mark.parametrize("name", ["refuses-connections", "killed"])
def test_key_managers_of_both_ends_away(backbone: Backbone, case: Case, name: str) -> None:
    tell, code = AWAY[name]
    row(backbone, both_fail, case, tell, code)


def test_a_key_manager_behind_a_cut_cable(backbone: Backbone, case: Case) -> None:
    # source_timeout, or source_unreachable: as a rule, Linux finds only a moment later than the
    # client that nobody answers on the cable
    row(backbone, initiator_fails, case, cut_off, "source_", names="no TCP connection")


@pytest.mark.parametrize("seconds", [5, 10, 20])
def test_an_initiator_waits_for_a_slow_key_manager(
    backbone: Backbone, case: Case, seconds: int
) -> None:
    row(backbone, nothing_fails, case, fault("slow", seconds=seconds), HUB)


def test_an_initiator_does_not_wait_for_40_s(backbone: Backbone, case: Case) -> None:
    row(backbone, initiator_fails, case, fault("slow", seconds=40), "source_timeout")


def test_a_responder_waits_for_a_slow_key_manager(backbone: Backbone, case: Case) -> None:
    row(backbone, nothing_fails, case, fault("slow", seconds=5), *FAR)


@pytest.mark.parametrize("seconds", [10, 20, 40])
def test_a_responder_does_not_wait_for_more_than_8_s(
    backbone: Backbone, case: Case, seconds: int
) -> None:
    row(backbone, CHECKS["responder"], case, fault("slow", seconds=seconds), "source_timeout")


@pytest.mark.parametrize("kind", ["silent", "drip"])
@pytest.mark.parametrize("end", CHECKS)
def test_an_answer_that_does_not_come_to_its_end(
    backbone: Backbone, case: Case, end: str, kind: str
) -> None:
    """`drip` is one byte a second: always something, and never enough."""
    row(backbone, CHECKS[end], case, fault(kind), "source_timeout")
