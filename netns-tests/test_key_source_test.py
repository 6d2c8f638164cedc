"""`vpnctl keysource test --deep` between two daemons, with a key manager that is well and one that
takes no POST."""

from __future__ import annotations

import json

import pytest

from vpnd_lab.errors import CommandFailed
from vpnd_lab.lab import open_lab
from vpnd_lab.spec import LabSpec

pytestmark = pytest.mark.netns

LAB_FILE = """

[sites.fra]
kme = true
[sites.ams]
kme = true
[[links]]
sites = ["fra", "ams"]
external_keys = { mode = "prefer", min_interval = 0 }
[kme]
rate = 5000
"""
DEEP = ("keysource", "test", "kme", "--link", "ams", "--deep")


async def test_a_deep_test_with_the_far_ends_help() -> None:
    async with open_lab(LabSpec.parse(LAB_FILE, name="deep")) as lab:
        await lab.start()
        fra = lab.site("fra")
        await fra.wait_state("ams", "active")
        far, near = lab.kme("ams").handle, lab.kme("fra").handle
        found = await fra.vpnctl(*DEEP)
        assert found["done"]
        assert [step["step"] for step in found["steps"]] == [
            *("connect", "tls", "certificate", "status", "dec_keys", "enc_keys"),
            *("key", "several keys", "other verb", "other sizes", "key"),
        ]
        # The last one is a key that the far end got by its ID, and that is in use
        fetched = [call["key_ids"] for call in await far.calls("dec_keys")]
        assert fetched.count(found["key_ids"]) == 1
        assert found["key_id"]

        await near.fault("no-post")
        with pytest.raises(CommandFailed) as failed:
            await fra.vpnctl(*DEEP)
        told = json.loads(failed.value.stdout)
        (bad,) = (step for step in told["steps"] if not step["done"])
        assert (bad["step"], 'verbs = "get"' in bad["hint"]) == ("dec_keys", True)
        assert (await fra.link_status("ams"))["state"] == "active"
