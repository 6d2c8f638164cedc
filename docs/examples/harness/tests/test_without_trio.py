"""The same for a project that does not use trio."""

from pathlib import Path

SITES = Path(__file__).parent / "sites.toml"


def test_the_link_comes_up(blocking_lab_factory):
    with blocking_lab_factory(SITES, start="links") as lab:
        lab.do(lambda lab: lab.site("fra").wait_state("ams", "active"))
        peers = lab.do(lambda lab: lab.site("fra").vpnctl("status"))
        assert [link["peer"] for link in peers["links"]] == ["ams"]
