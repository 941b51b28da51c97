"""What is delegated to instances by a BPF file system."""

from __future__ import annotations

import pytest

from utsuwa.core.errors import InvalidConfig
from utsuwa.instances.confinement import bpf_tokens

KEY = "security.bpffs.delegate_cmds"


@pytest.mark.parametrize(
    ("config", "options"),
    [
        ({}, []),
        ({"security.bpffs.path": "/a", KEY: ""}, []),
        ({KEY: "any"}, [("delegate_cmds", "any")]),
        ({KEY: "prog_load, map_create"}, [("delegate_cmds", "prog_load:map_create")]),
        (
            {KEY: "0x3", "security.bpffs.delegate_attachs": "a:b"},
            [("delegate_attachs", "a:b"), ("delegate_cmds", "0x3")],
        ),
    ],
)
def test_options(config: dict[str, str], options: list[tuple[str, str]]) -> None:
    assert bpf_tokens.options(config) == options


@pytest.mark.parametrize("release", ["6.1.0-25-amd64", "5.15.0", "6.8.12"])
def test_older_kernels(release: str) -> None:
    with pytest.raises(InvalidConfig, match=r"needs Linux 6\.9 or newer, and this host has " + release):
        bpf_tokens.check_kernel(release)


@pytest.mark.parametrize("release", ["6.9.1", "6.10.0-rc1", "7.0", "unknown"])
def test_newer_kernels(release: str) -> None:
    bpf_tokens.check_kernel(release)
