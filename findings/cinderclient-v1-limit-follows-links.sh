#!/bin/bash
# cinderclient's version 1 API: a limit is for one page only, and the client goes on to the others.
#
# Seen with python-cinderclient 3.5.0 (the last release that has version 1) and keystoneauth1 5.18.1.
# `volumes.list(limit=3)` should give three volumes. Where the server's answer has `volumes_links`
# with a next page, as Cinder's version 2 and later answer when a limit has cut a list, the client of
# version 1 follows it to the end of the list, by recursion, because it tells the limit to the server
# and not to the function that follows links. The client of version 2 in the same package stops at 3.
# So a server of version 1 must leave these links out.
#
# Output that was seen:
#     version 1, limit 3: 30 volumes in 10 requests
#     version 2, limit 3: 3 volumes in 1 requests
#
# Exits with 1 if this has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" --disable-pip-version-check --quiet install \
    python-cinderclient==3.5.0 keystoneauth1==5.18.1
"$work/venv/bin/python" -W ignore - <<'END'
import json
import logging
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from urllib.parse import parse_qs, urlsplit

from cinderclient import client
from keystoneauth1 import session, token_endpoint

logging.disable(logging.WARNING)  # "Version 1 is deprecated"
VOLUMES, asked = 30, []


class Cinder(BaseHTTPRequestHandler):
    """Thirty volumes, in pages of as many as are asked for, each with the way to the next."""

    def do_GET(self):
        asked.append(self.path)
        url = urlsplit(self.path)
        query = {key: int(value[0]) for key, value in parse_qs(url.query).items()}
        first, limit = query.get("marker", 0), query.get("limit", VOLUMES)
        page = [{"id": str(n)} for n in range(first + 1, min(first + limit, VOLUMES) + 1)]
        body = {"volumes": page}
        if first + limit < VOLUMES:
            href = f"{endpoint}{url.path.removeprefix('/t')}?limit={limit}&marker={page[-1]['id']}"
            body["volumes_links"] = [{"rel": "next", "href": href}]
        content = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_):
        pass


server = HTTPServer(("127.0.0.1", 0), Cinder)
endpoint = f"http://127.0.0.1:{server.server_port}/t"
Thread(target=server.serve_forever, daemon=True).start()
seen = {}
for version in ("1", "2"):
    asked.clear()
    auth = session.Session(auth=token_endpoint.Token(endpoint, "token"))
    found = client.Client(version, session=auth).volumes.list(limit=3)
    seen[version] = len(found)
    print(f"version {version}, limit 3: {len(found)} volumes in {len(asked)} requests")
sys.exit(0 if seen == {"1": VOLUMES, "2": 3} else 1)
END
