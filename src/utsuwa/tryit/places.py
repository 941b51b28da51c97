"""The files of the site, in one directory."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path("/etc/utsuwa-try")
FILE = "try.yaml"
CERTIFICATE, KEY = "client.crt", "client.key"
"""The site's own certificate."""
SERVER = "server.crt"
"""The daemon's certificate."""
