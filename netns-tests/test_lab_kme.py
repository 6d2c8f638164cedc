"""Key managers in a lab: asked from the sites, killed, cut off, and taken away with it.

fra-kme ── fra ── internet ── ams ── ams-kme
"""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from vpnd_lab.external_keys import key_sources
from vpnd_lab.lab import Lab, open_lab
from vpnd_lab.process import ProcessId
from vpnd_lab.spec import LabSpec
from vpnd_lab.teardown import down

pytestmark = pytest.mark.netns

LAB_FILE = """
external_keys = "require"
[sites.fra]
kme = true
skip = true
key_file = true
[sites.ams]
kme = true
skip = true
key_file = true
[kme]
rate = 5000
"""
CLIENT = Path(__file__).with_name("kme_client.py")
NEW = ("GET", "/api/v1/keys/sae-ams/enc_keys")
STATUS = ("GET", "/api/v1/keys/sae-ams/status")


def with_sources(lab: Lab, site: str) -> Path:
    """The site's tables of sources in a file of their own."""
    file = lab.folder / f"{site}.toml"
    file.write_text(key_sources(site, lab.folder / site, lab.plan), encoding="utf-8")
    return file


async def ask(lab: Lab, site: str, source: str, *call: str) -> Any:
    """Ask one of a site's sources from within the site."""
    toml = with_sources(lab, site)
    argv = [sys.executable, str(CLIENT), str(toml), source, *call]
    return json.loads((await lab.site(site).run(argv)).stdout)


async def fetch(lab: Lab, site: str, key_id: str) -> Any:
    """The key that the other site was given."""
    other = {"fra": "ams", "ams": "fra"}[site]
    body = json.dumps({"key_IDs": [{"key_ID": key_id}]})
    return await ask(lab, site, "kme", "POST", f"/api/v1/keys/sae-{other}/dec_keys", body)


async def test_both_sites_get_the_same_keys() -> None:
    async with open_lab(LabSpec.parse(LAB_FILE, name="kme")) as lab:
        (key,) = (await ask(lab, "fra", "kme", *NEW))["document"]["keys"]
        assert (await fetch(lab, "ams", key["key_ID"]))["document"] == {"keys": [key]}

        key = (await ask(lab, "ams", "skip", "GET", "/key?remoteSystemID=fra-kme"))["document"]
        by_id = ("GET", f"/key/{key['keyId']}?remoteSystemID=ams-kme")
        assert (await ask(lab, "fra", "skip", *by_id))["document"] == key

        files = [lab.folder / site / "etc" / "kme" / "shared.key" for site in ("fra", "ams")]
        assert files[0].read_bytes() == files[1].read_bytes() != bytes(32)
        assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}

        calls = await lab.kme("ams").handle.calls("dec_keys", "key")
        assert [(call["kind"], call["sae"]) for call in calls] == [
            ("dec_keys", "sae-ams"),
            ("key", "sae-ams"),
        ]


async def test_a_killed_key_manager_finds_its_pool_again() -> None:
    async with open_lab(LabSpec.parse(LAB_FILE, name="kme")) as lab:
        kme = lab.kme("fra").handle
        await kme.network(rate=0)
        (key,) = (await ask(lab, "fra", "kme", *NEW))["document"]["keys"]
        before = (await ask(lab, "fra", "kme", *STATUS))["document"]["stored_key_count"]
        await kme.kill()
        assert (await ask(lab, "fra", "kme", *STATUS))["error"] == "ConnectionRefusedError"
        # The other one lives on, with what it has
        assert (await fetch(lab, "ams", key["key_ID"]))["document"] == {"keys": [key]}
        await kme.start()
        after = (await ask(lab, "fra", "kme", *STATUS))["document"]
        assert after["stored_key_count"] == before
        assert (await kme.statistics())["calls"] == {"enc_keys": 1, "status": 2}


async def test_a_cut_cable_loses_what_is_sent_and_nothing_else() -> None:
    async with open_lab(LabSpec.parse(LAB_FILE, name="kme")) as lab:
        await lab.kme("fra").cut_off("fra")
        failed = await ask(lab, "fra", "kme", *STATUS)
        assert failed["error"] in {"TimeoutError", "OSError"}
        assert (await ask(lab, "ams", "kme", "GET", "/api/v1/keys/sae-fra/status"))["status"] == 200
        await lab.kme("fra").reconnect("fra")
        assert (await ask(lab, "fra", "kme", *STATUS))["status"] == 200


async def test_a_site_gets_its_sources_and_a_link_its_policy() -> None:
    async with open_lab(LabSpec.parse(LAB_FILE, name="kme")) as lab:
        await lab.site("fra").init()
        await lab.site("ams").init()
        written = tomllib.loads(lab.site("fra").config_path.read_text())["key_sources"]
        assert {name: table["type"] for name, table in written.items()} == {
            "kme": "qkd",
            "skip": "skip",
            "shared": "file",
        }
        peer = tomllib.loads(lab.write_peer("fra", "ams").read_text())
        assert peer["identity"] == lab.site("ams").identity
        assert peer["external_keys"] == {
            "mode": "require",
            "sources": [
                {"source": "kme", "peer_sae": "sae-ams"},
                {"source": "skip", "peer_sae": "ams-kme"},
                {"source": "shared"},
            ],
        }


async def test_sites_may_share_a_key_manager_and_have_several() -> None:
    text = """
    [sites.hub]
    kme = { a = "hub-a", b = "hub-b" }
    [sites.one]
    kme = { a = "far-a", b = "one-b" }
    [sites.two]
    kme = { a = "far-a" }
    """
    async with open_lab(LabSpec.parse(text, name="kme")) as lab:
        for site in ("one", "two"):
            document = await ask(lab, "hub", "a", "GET", f"/api/v1/keys/sae-{site}-a/status")
            assert document["document"]["target_KME_ID"] == "far-a"
        answer = await ask(lab, "hub", "b", "GET", "/api/v1/keys/sae-two-b/status")
        assert answer["status"] == 400  # two is not in that network
        assert lab.kme("hub", source="b").name == "hub-b"


def test_nothing_is_left_when_the_harness_is_killed(tmp_path: Path) -> None:
    code = f"""
import trio
from vpnd_lab.lab import open_lab
from vpnd_lab.spec import LabSpec
async def main():
    async with open_lab(LabSpec.parse({LAB_FILE!r}), name="kme") as lab:
        print(*(kme.handle.process.pid for kme in lab.kmes.values()), flush=True)
        await trio.sleep_forever()
trio.run(main)
"""
    env = {**os.environ, "VPND_LAB_ROOT": str(tmp_path)}
    argv = [sys.executable, "-c", code]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env) as harness:
        assert harness.stdout is not None
        kmes = [ProcessId.of(int(word)) for word in harness.stdout.readline().split()]
        assert len(kmes) == 2
        harness.send_signal(signal.SIGKILL)
    assert all(kme.alive() for kme in kmes)
    down(tmp_path, "kme")
    assert not any(kme.alive() for kme in kmes)
    assert not (tmp_path / "kme").exists()
