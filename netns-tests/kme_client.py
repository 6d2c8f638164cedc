"""What a site's key sources give, asked by hand: Python's own HTTP client, in a site of a lab.

Standard library only: run in a site as `python kme_client.py VPND_TOML SOURCE METHOD PATH [JSON]`;
prints the status and the answer's document, or the error, as one JSON object.
"""

from __future__ import annotations

import http.client
import json
import ssl
import sys
import tomllib
from pathlib import Path
from urllib.parse import urlsplit


def ask(
    toml: Path, source: str, method: str, path: str, body: str | None = None
) -> dict[str, object]:
    """One call of a source."""
    table = tomllib.loads(toml.read_text(encoding="utf-8"))["key_sources"][source]
    context = ssl.create_default_context(cafile=table["ca"])
    context.load_cert_chain(table["certificate"], table["key"])
    address = urlsplit(table["urls"][0]).netloc
    connection = http.client.HTTPSConnection(address, context=context, timeout=3)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return {"status": response.status, "document": json.loads(response.read())}
    except (OSError, http.client.HTTPException) as error:
        return {"error": type(error).__name__, "message": str(error)}
    finally:
        connection.close()


if __name__ == "__main__":
    print(json.dumps(ask(Path(sys.argv[1]), *sys.argv[2:])))
