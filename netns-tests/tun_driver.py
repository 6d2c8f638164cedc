"""Drives `tun` inside a site: one JSON line in, one call, one JSON line out.

A process of its own, because a network namespace belongs to a process, and because tests kill it.
"""

from __future__ import annotations

import json
import os
import sys
from ipaddress import ip_interface, ip_network
from typing import Any

import trio

import tun

Values = dict[str, Any]


class Driver:
    def __init__(self) -> None:
        self.tunnel: tun.Tunnel | None = None
        self._path = os.environ["PATH"]
        self._fence = tun.KeptFence()

    @property
    def _tunnel(self) -> tun.Tunnel:
        if self.tunnel is None:
            raise RuntimeError("the test opened no tunnel")
        return self.tunnel

    async def pid(self, _: Values) -> int:
        return os.getpid()

    async def set_path(self, values: Values) -> None:
        os.environ["PATH"] = values["path"] or self._path

    async def open(self, values: Values) -> Values:
        values["addresses"] = tuple(ip_interface(text) for text in values["addresses"])
        self.tunnel = await tun.open_tunnel(tun.TunnelSpec(**values))
        return {
            "backend": self.tunnel.backend,
            "public_key": self.tunnel.public_key.hex(),
            "adopted": self.tunnel.adopted,
        }

    async def add_peer(self, values: Values) -> None:
        await self._tunnel.add_peer(_peer(values))

    async def replace_peer(self, values: Values) -> None:
        old = bytes.fromhex(values.pop("old"))
        await self._tunnel.replace_peer(old, _peer(values))

    async def set_psk(self, values: Values) -> None:
        await self._tunnel.set_psk(bytes.fromhex(values["public_key"]), _psk(values))

    async def matches(self, values: Values) -> bool:
        key = bytes.fromhex(values["public_key"])
        return await self._tunnel.preshared_key_matches(key, _psk(values))

    async def update_peer(self, values: Values) -> None:
        key = bytes.fromhex(values.pop("public_key"))
        if "allowed_ips" in values:
            values["allowed_ips"] = [ip_network(text) for text in values["allowed_ips"]]
        if "endpoint" in values:
            values["endpoint"] = tuple(values["endpoint"])
        await self._tunnel.update_peer(key, **values)

    async def remove_peer(self, values: Values) -> None:
        await self._tunnel.remove_peer(bytes.fromhex(values["public_key"]))

    async def peers(self, values: Values) -> Values:
        return {
            key.hex(): {
                "endpoint": list(peer.endpoint) if peer.endpoint else None,
                "handshake_stamp": peer.handshake_stamp,
                "rx_bytes": peer.rx_bytes,
                "tx_bytes": peer.tx_bytes,
                "allowed_ips": sorted(str(prefix) for prefix in peer.allowed_ips),
                "keepalive": peer.keepalive,
                "psk": peer.psk.expose().hex() if peer.psk else None,
                "shown": repr(peer),
            }
            for key, peer in (await self._tunnel.peers(**values)).items()
        }

    async def set_routes(self, values: Values) -> Values:
        done = await self._tunnel.set_routes([ip_network(text) for text in values["prefixes"]])
        return _faults(done)

    async def set_guards(self, values: Values) -> Values:
        prefixes = [ip_network(text) for text in values["prefixes"]]
        table, netns = values.get("table"), values.get("netns")
        return _faults(await tun.set_guard_routes(prefixes, table=table, netns=netns))

    async def put_fence(self, values: Values) -> bool:
        """Whether somebody had changed the one that was put by this driver."""
        spec = tun.FenceSpec(
            interface="wg0",
            ways=frozenset({"wg0"}),
            guarded=frozenset(ip_network(text) for text in values["prefixes"]),
        )
        return (await self._fence.put(spec)).was_altered

    async def remove_guards(self, values: Values) -> None:
        prefixes = [ip_network(text) for text in values["prefixes"]]
        await tun.remove_guard_routes(prefixes, table=values.get("table"))

    async def guards(self, values: Values) -> list[str]:
        return [str(prefix) for prefix in await tun.guard_routes(table=values.get("table"))]

    async def notices(self, values: Values) -> bool:
        """Whether a watch is told of what a command does."""
        with tun.ChangeWatch() as watch:
            await trio.run_process(values["command"])
            with trio.move_on_after(values["seconds"]) as scope:
                await watch.wait_changed()
        return not scope.cancelled_caught

    async def path_mtus(self, values: Values) -> Values:
        found = await tun.path_mtus(
            values["hosts"], fwmark=values.get("fwmark"), not_by=values["not_by"]
        )
        return dict(found)

    async def delete(self, _: Values) -> None:
        await self._tunnel.delete()

    async def aclose(self, _: Values) -> None:
        await self._tunnel.aclose()


def _faults(done: tun.RoutesSet) -> Values:
    """Why there is no route, by prefix."""
    return {str(prefix): reason for prefix, reason in done.faults.items()}


def _psk(values: Values) -> tun.PresharedKey:
    return tun.PresharedKey(bytes.fromhex(values["psk"]))


def _peer(values: Values) -> tun.PeerSpec:
    return tun.PeerSpec(
        public_key=bytes.fromhex(values["public_key"]),
        psk=_psk(values),
        endpoint=tuple(values["endpoint"]) if values.get("endpoint") else None,
        allowed_ips=tuple(ip_network(text) for text in values["allowed_ips"]),
        keepalive=values.get("keepalive", 25),
    )


async def main() -> None:
    driver = Driver()
    while line := await trio.to_thread.run_sync(sys.stdin.readline):
        name, values = json.loads(line)
        try:
            answer = {"result": await getattr(driver, name)(values)}
        except tun.TunError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    trio.run(main)
