"""The stock host boots once; each of its checks is a test of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from tests.stock import disk, machine


@pytest.fixture(scope="session")
def report(tmp_path_factory: pytest.TempPathFactory) -> Iterator[machine.Report]:
    """What the machine tells of itself; takes minutes, and more where its disks are still to be made."""
    release = disk.RELEASES[os.environ["UTSUWA_STOCK_HOST"]]
    folder = tmp_path_factory.mktemp("stock-host")
    disks = disk.prepare(release)
    checkout = disk.checkout(folder)
    yield machine.run(disks, checkout, folder)
    checkout.unlink()
