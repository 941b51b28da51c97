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


INHERIT = """
import os, subprocess
from utsuwa.host.system import descriptors
os.set_inheritable(os.open("/", os.O_RDONLY), True)
look = ["/bin/ls", "/proc/self/fd"]
before = subprocess.run(look, capture_output=True, text=True, close_fds=False).stdout.split()
descriptors.keep_inherited()
after = subprocess.run(look, capture_output=True, text=True, close_fds=False).stdout.split()
print(len(before), len(after))
"""


@pytest.mark.processes
def test_inherited_descriptors_are_kept_from_programs() -> None:
    done = subprocess.run([sys.executable, "-c", INHERIT], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5", "4"]


@pytest.mark.processes
def test_descriptor_limit_is_raised_to_the_maximum_and_restored_for_children() -> None:
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["(200, 200) (100, 200)", "(100, 200)", ""]
