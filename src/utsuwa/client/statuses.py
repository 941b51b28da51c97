"""The statuses of instances, as the API names them."""

from __future__ import annotations

RUNNING = ("Running", "Ready")
"""Those of a running instance; `Ready` is one that has said so."""
