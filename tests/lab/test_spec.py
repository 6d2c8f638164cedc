"""Lab files: what may be left out, and every error told at once."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from vpnd_lab.errors import LabFileError
from vpnd_lab.plan import make_plan
from vpnd_lab.spec import LabSpec

BAD = """
nmae = "x"
[sites.Bad]
[sites.fra]
uplinks = ["nowhere"]
lan = ["10.1.0.1/16", 7, "10.2.0.0"]
hosts = ["a", "b b"]
listen_port = "1"
[sites.ams]
tunels = {}
[sites.ber]
tunnels = { backbon = ["10.255.0.1/24"] }
[tunnels.backbone]
backend = "kernal"
[[links]]
sites = ["fra", "amz"]
underlay = "ipv5"
[[links]]
sites = ["fra"]
[[links]]
sites = ["fra", "ber"]
endpoints = ["ams"]
"""


def refused(text: str) -> dict[str, str]:
    """The problems of a lab file, reason and hint by key."""
    with pytest.raises(LabFileError) as caught:
        LabSpec.parse(text, source="lab.toml")
    assert all(line.startswith("lab.toml: ") for line in str(caught.value).splitlines())
    return {problem.key: f"{problem.reason}; {problem.hint}" for problem in caught.value.problems}


def test_two_names_make_a_lab() -> None:
    spec = LabSpec.parse("[sites.fra]\n[sites.ams]\n", name="two")
    assert spec.name == "two"
    assert list(spec.sites) == ["fra", "ams"]
    assert list(spec.routers) == ["internet"]
    assert spec.tunnels["backbone"].interface == "wg0"


def test_every_error_is_told_at_once() -> None:
    problems = refused(BAD)
    assert set(problems) == {
        "nmae",
        "sites.Bad",
        "sites.fra.uplinks",
        "sites.fra.lan.0",
        "sites.fra.lan.1",
        "sites.fra.lan.2",
        "sites.fra.hosts.1",
        "sites.fra.listen_port",
        "sites.ams.tunels",
        "sites.ber.tunnels",
        "tunnels.backbone.backend",
        "links.0.underlay",
        "links.1.sites.1",
        "links[fra-amz].sites",
        "links[fra-ber].endpoints",
    }
    assert "did you mean tunnels?" in problems["sites.ams.tunels"]
    assert "write 10.1.0.0/16" in problems["sites.fra.lan.0"]
    assert "'auto', 'kernel' or 'userspace'" in problems["tunnels.backbone.backend"]
    assert "[routers.nowhere]" in problems["sites.fra.uplinks"]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "sites"),
        ("[sites]", "sites"),
        ("name = '../x'\n[sites.a]", "name"),
        ("[sites.a]\n[tunnels.t]\ninterface = 'a b'", "tunnels.t.interface"),
        ("x =", ""),
        ("sites = 3", "sites"),
        ("[sites]\nfra = 3", "sites.fra"),
        ("[sites.fra]\n[routers]", "routers"),
        ("[sites.fra]\n[sites.internet]", "sites.internet"),
        ("[sites.fra]\n[routers.fra]", "sites.fra"),
        ("[sites.fra]\nhosts = ['wg0']", "tunnels.backbone.interface"),
        ("[sites.fra]\nhosts = ['lo']", "sites.fra.hosts"),
        ("[sites.averylongname]", "sites.averylongname.hosts"),
        ("[sites.fra]\nuplinks = []", "sites.fra.uplinks"),
        ("[sites.fra]\nlan = ['10.0.0.0/31']", "sites.fra.lan"),
        ("[sites.fra.uplinks.internet]\naddresses = ['198.18.0.1/32']",
         "sites.fra.uplinks.internet.addresses"),
        ("[sites.fra.uplinks.internet]\nmtu = 100", "sites.fra.uplinks.internet.mtu"),
        ("[sites.fra]\n[sites.ams]\nlan = ['10.1.3.0/24']", "sites.ams.lan"),
        ("[sites.fra]\n[sites.ams]\ntunnels = {backbone = ['10.255.0.1/24']}",
         "sites.ams.tunnels.backbone"),
        ("[sites.fra]\n[tunnels.t]\nnetworks = ['10.9.0.0/31']", "tunnels.t.networks"),
        ("[sites.fra]\n[tunnels.a]\n[tunnels.b]\ninterface = 'wg1'", "tunnels.b.listen_port"),
        ("[sites.fra]\n[[links]]\nsites = ['fra', 'fra']", "links[fra-fra].sites"),
        ("[sites.a]\n[sites.b]\n[[links]]\nsites = ['a', 'b']\n[[links]]\nsites = ['b', 'a']",
         "links[b-a]"),
        ("[sites.a.uplinks.internet]\naddresses = ['198.18.0.2/24']\n[sites.b]\n"
         "[[links]]\nsites = ['a', 'b']\nunderlay = 'ipv6'", "links[a-b].underlay"),
        ("[sites.a]\n[routers.r]\nneighbours = ['r']", "routers.r.neighbours"),
        ("[sites.a]\n[[links]]\nsites = ['a', 'b', 'c']", "links.0.sites"),
    ],
)  # fmt: skip
def test_one_error(text: str, key: str) -> None:
    problems = refused(text)
    assert key in problems
    assert len(problems) == 1


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(LabFileError, match=r"no\.toml: cannot be read: No such file"):
        LabSpec.load(tmp_path / "no.toml")


@pytest.mark.parametrize(
    ("file", "name"),
    [("Three_Sites.toml", "three-sites"), ("ä.toml", "lab"), ("2 of them (b).toml", "2-of-them-b")],
)
def test_a_lab_has_its_files_name(tmp_path: Path, file: str, name: str) -> None:
    (tmp_path / file).write_text("[sites.fra]")
    assert LabSpec.load(tmp_path / file).name == name


def test_the_documented_file_is_the_default() -> None:
    """The file in the docstring, which shows every key, is what two names alone mean."""
    import vpnd_lab.spec

    assert vpnd_lab.spec.__doc__ is not None
    lines = vpnd_lab.spec.__doc__.split("With every key", 1)[1].splitlines()[1:]
    text = "\n".join(line.removeprefix("    ") for line in lines) + "\n[sites.ams]\n"
    text = text.replace("keepalive = 25", "# keepalive = 25")
    assert make_plan(LabSpec.parse(text)) == make_plan(LabSpec.parse("[sites.fra]\n[sites.ams]\n"))


def test_sources_of_keys_are_asked_for_in_one_line() -> None:
    made = make_plan(
        LabSpec.parse(
            'external_keys = "require"\n'
            "[sites.fra]\nkme = true\nskip = true\nkey_file = true\n"
            "[sites.ams]\nkme = true\n"
        )
    )
    assert {name: kme.sites for name, kme in made.kmes.items()} == {
        "fra-kme": ("fra",),
        "ams-kme": ("ams",),
    }
    assert [source.name for source in made.sites["fra"].sources] == ["kme", "skip", "shared"]
    external = made.link("fra", "ams").external_keys
    assert external is not None
    far = {source.name: source for source in made.sites["ams"].sources}
    table = tomllib.loads(external.table(far))["external_keys"]
    assert table == {"mode": "require", "source": "kme", "peer_sae": "sae-ams"}


def test_a_link_may_say_otherwise_and_more() -> None:
    made = make_plan(
        LabSpec.parse(
            'external_keys = "require"\n'
            "[sites.a]\nkme = true\nkey_file = true\n[sites.b]\nkme = true\nkey_file = true\n"
            '[sites.c]\n[[links]]\nsites = ["a", "b"]\n'
            'external_keys = { mode = "prefer", sources = ["shared"], fallback_limit = 60 }\n'
            '[[links]]\nsites = ["a", "c"]\nexternal_keys = "off"\n'
        )
    )
    external = made.link("a", "b").external_keys
    assert external is not None
    far = {source.name: source for source in made.sites["b"].sources}
    table = tomllib.loads(external.table(far))["external_keys"]
    assert table == {"mode": "prefer", "source": "shared", "fallback_limit": 60}
    assert made.link("a", "c").external_keys is None


def test_faults_in_sources_of_keys_are_told() -> None:
    problems = refused(
        'external_keys = "require"\n[sites.a]\nkme = 7\n[sites.b]\nskip = "B b"\n[sites.c]\n'
        'kme = { shared = "x" }\n[sites.d]\nkme = { p = "x", q = "x" }\n[kme]\nrate = -1\n'
    )
    assert set(problems) == {"sites.a.kme", "sites.b.skip", "kme.rate"} | {
        "sites.c.kme",
        "sites.d.kme",
        "external_keys",
    }
    assert "have no source of keys in common" in problems["external_keys"]


def test_skip_may_come_from_a_key_manager_of_its_own() -> None:
    made = make_plan(
        LabSpec.parse(
            'external_keys = "prefer"\n'
            '[sites.a]\nkme = true\nskip = "a-skip"\n[sites.b]\nkme = true\nskip = "b-skip"\n'
            "[sites.c]\nkme = true\nskip = true\n"
        )
    )
    sources = {source.name: source for source in made.sites["a"].sources}
    assert (sources["skip"].kme, sources["skip"].sae) == ("a-skip", "sae-a-skip")
    used = {link.sites: link.external_keys for link in made.links}
    names = {pair: external.sources for pair, external in used.items() if external is not None}
    assert names == {("a", "b"): ("kme", "skip"), ("a", "c"): ("kme",), ("b", "c"): ("kme",)}
