"""WireGuard configured by hand between two sites, beside vpnd: what its tunnels are measured by."""

from __future__ import annotations

from ipaddress import IPv4Address

import trio
from linking import BACKEND

from vpnd_lab.lab import Lab
from vpnd_lab.patience import patient
from vpnd_lab.site import Site

INTERFACE = "plain0"
PORT = 51990
ADDRESSES = (IPv4Address("192.168.99.1"), IPv4Address("192.168.99.2"))


async def plain_tunnel(lab: Lab, one: str, other: str, *, keepalive: int = 5) -> None:
    """Make it, with a preshared key and ADDRESSES; returns once it carries traffic."""
    sites = lab.site(one), lab.site(other)
    keys = [(await site.run(["wg", "genkey"])).stdout for site in sites]
    public_keys = [(await sites[0].run(["wg", "pubkey"], stdin=key)).stdout.strip() for key in keys]
    psk = (await sites[0].run(["wg", "genpsk"])).stdout
    for number, site in enumerate(sites):
        there, peer = ADDRESSES[1 - number], sites[1 - number]
        await _interface(site)
        await site.run(
            ["wg", "set", INTERFACE, "private-key", "/dev/stdin", "listen-port", str(PORT)],
            stdin=keys[number],
        )
        await site.run(
            [
                *("wg", "set", INTERFACE, "peer", public_keys[1 - number]),
                *("preshared-key", "/dev/stdin", "endpoint", f"{peer.address(4)}:{PORT}"),
                *("allowed-ips", f"{there}/32", "persistent-keepalive", str(keepalive)),
            ],
            stdin=psk,
        )
        await site.run(["ip", "address", "add", f"{ADDRESSES[number]}/24", "dev", INTERFACE])
        await site.run(["ip", "link", "set", INTERFACE, "mtu", "1420", "up"])
    # -w: until one is answered
    await sites[0].run(["ping", "-c1", "-w120", str(ADDRESSES[1])], seconds=130)


async def _interface(site: Site) -> None:
    if BACKEND == "kernel":
        await site.run(["ip", "link", "add", INTERFACE, "type", "wireguard"])
        return
    # It goes into the background by itself, and ends with the lab
    await site.run(["sh", "-c", f"wireguard-go {INTERFACE} < /dev/null > /dev/null 2>&1"])
    with trio.fail_after(patient(30)):
        while True:
            if (await site.run(["wg", "show", INTERFACE], check=False)).returncode == 0:
                return
            await trio.sleep(0.1)
