"""Which of this node's identities a link uses, and what contradicts itself."""

from __future__ import annotations

import pytest

from kex.identity import Fingerprint, Identity
from tests.vpnd.config_files import AMS1, LON1, Site, problem_at
from vpnd.file_trust import FileFault
from vpnd.identity_store import (
    create_identity,
    identity_in_use,
    load_identities,
    remove_identity,
    system_suite,
    use_identity,
)


def make(site: Site, *names: str, suite: int = 1) -> dict[str, Fingerprint]:
    made = {}
    for name in names:
        identity = Identity.generate(system_suite(suite))
        create_identity(site.state_dir, identity, name)
        made[name] = identity.fingerprint
    return made


def locals_of(site: Site, peer: str) -> tuple[Fingerprint, ...]:
    config = site.load()
    return config.locals_of(config.peers[peer])


def second_link(site: Site, **values: object) -> None:
    """Another link to ams1, on another tunnel."""
    site.main["tunnels"]["two"] = {
        "interface": "wg-two",
        "listen_port": 51900,
        "addresses": ["10.254.0.1/24"],
    }
    site.peers["ams1-2"] = {
        "identity": AMS1,
        "tunnel": "two",
        "allowed_ips": ["10.254.0.2/32"],
        **values,
    }


def test_a_link_uses_the_identity_in_use_and_accepts_the_others(site: Site) -> None:
    made = make(site, "default", "next")
    assert locals_of(site, "ams1") == (made["default"], made["next"])
    use_identity(site.state_dir, "next")
    assert locals_of(site, "ams1") == (made["next"], made["default"])


def test_only_those_of_the_peers_suites(site: Site) -> None:
    made = make(site, "default") | make(site, "next", suite=2)
    assert locals_of(site, "ams1") == (made["default"],)
    site.peers["ams1"]["identity"] = [Fingerprint.of(2, b"ams1").text(), AMS1]
    assert locals_of(site, "ams1") == (made["default"], made["next"])


def test_an_identity_that_a_link_names_is_its_alone(site: Site) -> None:
    made = make(site, "default", "second")
    second_link(site, identity=LON1, local_identity="second")
    assert locals_of(site, "ams1") == (made["default"],)
    assert locals_of(site, "ams1-2") == (made["second"],)
    use_identity(site.state_dir, "second")
    assert locals_of(site, "ams1") == (made["second"], made["default"])


def test_a_list_is_for_a_rotation(site: Site) -> None:
    made = make(site, "default", "second", "third")
    second_link(site, identity=LON1, local_identity=["third", "second"])
    assert locals_of(site, "ams1-2") == (made["third"], made["second"])


def test_a_peer_at_two_links_needs_two_pairs(site: Site) -> None:
    make(site, "default", "second")
    second_link(site)
    problem = problem_at(site.problems(), "identity")
    assert "one pair of identities on two links" in problem.reason
    assert "vpnctl id new" in problem.hint
    second_link(site, local_identity="second")
    site.load()
    second_link(site, local_identity="default")
    assert "one pair" in problem_at(site.problems(), "identity").reason


def test_pairs_are_compared_by_name_where_no_identity_can_be_read(site: Site) -> None:
    second_link(site, local_identity="second")
    site.load()
    second_link(site)
    assert "one pair" in problem_at(site.problems(), "identity").reason


@pytest.mark.parametrize(
    ("names", "key", "words"),
    [
        ("secnd", "local_identity", 'no identity "secnd"'),
        (["second", "secnd"], "local_identity[1]", 'no identity "secnd"'),
        (["second", "second"], "local_identity[1]", "twice"),
        ([], "local_identity", "is empty"),
        ("../x", "local_identity", "cannot be a name"),
        (5, "local_identity", "must be a list"),
    ],
)
def test_names_that_cannot_be(site: Site, names: object, key: str, words: str) -> None:
    make(site, "default", "second")
    second_link(site, identity=LON1, local_identity=names)
    assert words in problem_at(site.problems(), key).reason


def test_an_identity_of_another_suite_is_told(site: Site) -> None:
    make(site, "default")
    make(site, "strong", suite=2)
    second_link(site, identity=LON1, local_identity="strong")
    problem = problem_at(site.problems(), "identity")
    assert "is of suite 1, and this node's own is of suite 2" in problem.reason
    assert "local_identity" in problem.hint


def test_the_one_in_use_comes_first_and_stays(site: Site) -> None:
    make(site, "default", "next")
    assert identity_in_use(site.state_dir) is None
    use_identity(site.state_dir, "next")
    assert list(load_identities(site.state_dir).identities) == ["next", "default"]
    with pytest.raises(FileFault, match="in use"):
        remove_identity(site.state_dir, "next")
    for act in (use_identity, remove_identity):
        with pytest.raises(FileFault, match="no such identity"):
            act(site.state_dir, "nobody")
    remove_identity(site.state_dir, "default")
    assert list(load_identities(site.state_dir).identities) == ["next"]


@pytest.mark.parametrize("content", [b"", b"../x\n", b"\xff", b"a b", b"x" * 500])
def test_a_spoiled_choice_is_a_fault(site: Site, content: bytes) -> None:
    make(site, "default")
    path = site.state_dir / "identity.use"
    path.write_bytes(content)
    path.chmod(0o644)
    (fault,) = load_identities(site.state_dir).faults
    assert fault.path == path
    assert site.problems()[0].file == path
