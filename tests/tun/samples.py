"""Peers and changes of all kinds, for the tests of both backends' messages."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network

from hypothesis import strategies as st

from tun.device import DeviceChange, PeerChange
from tun.model import Prefix, PresharedKey

public_keys = st.binary(min_size=32, max_size=32)
psks = public_keys.filter(any).map(PresharedKey)
ports = st.integers(1, 65535)
endpoints = st.tuples(
    st.one_of(st.ip_addresses(v=4).map(str), st.ip_addresses(v=6).map(str)), ports
)


def _prefix(data: tuple[int, int, int]) -> Prefix:
    version, address, length = data
    if version == 4:
        return IPv4Network((address % 2**32, length % 33), strict=False)
    return IPv6Network((address, length), strict=False)


prefixes = st.tuples(st.sampled_from([4, 6]), st.integers(0, 2**128 - 1), st.integers(0, 128)).map(
    _prefix
)

peer_changes = st.builds(
    PeerChange,
    public_key=public_keys,
    psk=st.none() | psks,
    endpoint=st.none() | endpoints,
    keepalive=st.none() | st.integers(0, 65535),
    allowed_ips=st.lists(prefixes, max_size=5, unique=True).map(tuple),
    replace_allowed_ips=st.booleans(),
    update_only=st.booleans(),
)
device_changes = st.builds(
    DeviceChange,
    listen_port=st.none() | ports,
    fwmark=st.none() | st.integers(0, 2**32 - 1),
    peers=st.lists(peer_changes, max_size=5, unique_by=lambda peer: peer.public_key).map(tuple),
)
