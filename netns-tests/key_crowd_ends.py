"""Far ends of many links that take QKD keys: bench.far_ends, and each asks its key manager.

`python key_crowd_ends.py HUB_PORT COUNT FOLDER`, with FOLDER/source.json: the far key manager's
address, and the folder with ca.pem, sae-NUMBER.pem and sae-NUMBER.key. The first ends have none.
"""

from __future__ import annotations

import http.client
import json
import os
import ssl
import sys
from base64 import b64decode
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

from bench.far_ends import WIREGUARD_PORT, FarEnd, FarEnds
from kex.address import Address
from kex.endpoint import Endpoint
from kex.events import Event, ExternalKeysWanted, Role
from kex.external import ExternalKey, ExternalKeyReference, ExternalMode
from kex.identity import Fingerprint
from kex.link_config import LinkConfig
from kex.secret import Secret
from vpnd.clock import boottime

HUB_SAE: Final = "sae-hub"
"""What the key managers call the hub."""
NEVER: Final = 1e12
"""The hub begins."""


class Application:
    """One far end as its key manager knows it."""

    def __init__(self, number: int, source: Any) -> None:
        folder = Path(source["folder"])
        self.sae = f"sae-{number}"
        context = ssl.create_default_context(cafile=folder / "ca.pem")
        context.load_cert_chain(folder / f"{self.sae}.pem", folder / f"{self.sae}.key")
        address = urlsplit(source["url"]).netloc
        self._connection = http.client.HTTPSConnection(address, context=context, timeout=10)

    def ask(self, call: str, body: Any) -> Any:
        """The key that came. Raises OSError, HTTPException, LookupError."""
        try:
            self._connection.request("POST", f"/api/v1/keys/{HUB_SAE}/{call}", json.dumps(body))
            (key,) = json.loads(self._connection.getresponse().read())["keys"]
        finally:
            self._connection.close()
        return key


class KeyedEndpoint(Endpoint):
    """Answers what the key exchange asks for by itself."""

    application: Application

    def next_event(self) -> Event | None:
        event = super().next_event()
        if isinstance(event, ExternalKeysWanted):
            now = boottime()
            try:
                keys = self._keys(event)
            except (OSError, http.client.HTTPException, LookupError, ValueError) as error:
                self.external_keys_failed(event.link, event.token, str(error)[:100], now)
            else:
                self.external_keys(event.link, event.token, keys, now)
        return event

    def _keys(self, event: ExternalKeysWanted) -> tuple[ExternalKey, ...]:
        if event.role is Role.INITIATOR:
            key = self.application.ask("enc_keys", {"number": 1, "size": 256})
            reference = ExternalKeyReference(
                "qkd", "kme-b", self.application.sae, (key["key_ID"],), 256
            )
        else:
            (reference,) = (entry.reference for entry in event.listing)
            (key_id,) = reference.key_ids
            key = self.application.ask("dec_keys", {"key_IDs": [{"key_ID": key_id}]})
        return (ExternalKey(reference, Secret(b64decode(key["key"]))),)


def give_keys(end: FarEnd, number: int, source: Any, public_key: bytes, port: int) -> None:
    """Let a far end take external keys, before it knows the hub."""
    suites = {1: end.identity.suite}
    endpoint = KeyedEndpoint(
        suites=suites, identities=(end.identity,), random=os.urandom, now=boottime()
    )
    endpoint.application = Application(number, source)
    end.endpoint = endpoint
    fingerprint = Fingerprint.of(1, public_key)
    config = LinkConfig(
        name="hub",
        locals=(end.identity.fingerprint,),
        remotes=(fingerprint,),
        wireguard_key=end.wireguard.public_key,
        wireguard_port=WIREGUARD_PORT,
        address=Address("127.0.0.1", port),
        interval=120,
        external_mode=ExternalMode.REQUIRE,
        external_at_least=1,
    )
    endpoint.add_link(config, boottime(), start_at=NEVER)
    endpoint.know_public_key(fingerprint, public_key)


def main() -> None:
    port, count, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    source = json.loads((folder / "source.json").read_text())
    public_key = (folder / "hub.pub").read_bytes()
    ends = FarEnds(count)
    for number, end in enumerate(ends.ends.values()):
        if number < source["plain"]:
            end.know_hub(public_key, port)
        else:
            give_keys(end, number, source, public_key, port)
    told = [(end.host, end.identity.fingerprint.text()) for end in ends.ends.values()]
    (folder / "ends.json").write_text(json.dumps(told))
    print("ready", flush=True)
    ends.serve()
    print(json.dumps(ends.counted), flush=True)


if __name__ == "__main__":
    main()
