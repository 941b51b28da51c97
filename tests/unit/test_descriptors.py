from __future__ import annotations

import subprocess
import sys

import pytest

LOOK = """
import resource
from utsuwa.host.system import descriptors
resource.setrlimit(resource.RLIMIT_NOFILE, (100, 200))
assert descriptors.original_limit() is None
descriptors.raise_limit()
print(resource.getrlimit(resource.RLIMIT_NOFILE), descriptors.original_limit())
descriptors.raise_limit()
print(descriptors.original_limit())
"""


@pytest.mark.processes
def test_the_daemon_takes_what_it_may_and_knows_what_it_was_given() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["(200, 200) (100, 200)", "(100, 200)", ""]
