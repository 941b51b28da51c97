"""What the server says it can do, and what its documentation says."""

from __future__ import annotations

import re
from pathlib import Path

from utsuwa.api.extensions import EXTENSIONS

DOCS = Path(__file__).parents[2] / "docs" / "extensions.md"


def test_the_page_and_the_list_agree() -> None:
    documented = re.findall(r"^\| `(\w+)` \| \S", DOCS.read_text(), re.MULTILINE)
    assert tuple(documented) == EXTENSIONS


def test_extensions_are_unique() -> None:
    assert len(set(EXTENSIONS)) == len(EXTENSIONS)


def test_extensions_required_by_the_lxc_client_are_advertised() -> None:
    """Several of its commands refuse to run where one of these is missing."""
    assert {
        "api_filtering",
        "storage",
        "projects",
        "instances",
        "container_full",
        "container_exec_user_group_cwd",
        "operation_description",
        "event_lifecycle",
    } <= set(EXTENSIONS)
