"""Debian's cloud-init in instances: what it finds, and whether it says so."""

from __future__ import annotations

import json

import pytest

from tests.support.daemon import Daemon
from tests.support.images import Image

pytestmark = [pytest.mark.root, pytest.mark.debian, pytest.mark.timeout(300)]

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGJ0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0 ada@example.com"
USER_DATA = f"""\
#cloud-config
users:
  - name: ada
    shell: /bin/sh
    ssh_authorized_keys: ["{KEY}"]
write_files:
  - path: /etc/greeting
    content: "grüß dich\\n"
runcmd:
  - echo once >>/var/log/runs
"""
VENDOR_DATA = """\
#cloud-config
bootcmd: [echo vendor >/etc/vendor]
"""
NETWORK = """\
version: 2
ethernets:
  eth0:
    addresses: [{address}/24]
"""

SEEDS = {
    "meta-data": (
        "instance-id: {{ container.name }}\nlocal-hostname: {{ container.name }}\n"
        '{{ config_get("user.meta-data", "") }}\n'
    ),
    "user-data": (
        '{%- if config_get("cloud-init.user-data", "") == "" %}'
        '{{ config_get("user.user-data", properties.default) }}'
        '{%- else %}{{- config_get("cloud-init.user-data", properties.default) }}{% endif %}\n'
    ),
    "vendor-data": '{{ config_get("user.vendor-data", properties.default) }}\n',
    "network-config": """\
{% if config_get("user.network-config", "") == "" %}version: 1
config:
  - type: physical
    name: {% if instance.type == "virtual-machine" %}enp5s0{% else %}eth0{% endif %}
    subnets:
      - type: {% if config_get("user.network_mode", "") == "link-local" %}manual{% else %}dhcp{% endif %}
        control: auto{% else %}{{ config_get("user.network-config", "") }}{% endif %}
""",
}
"""Templates of cloud-init's data source NoCloud, as distributions and image builders write them."""


@pytest.fixture(scope="module")
def cloud(module_daemon: Daemon, cloud_image: Image) -> str:
    module_daemon.import_image(cloud_image.metadata, cloud_image.rootfs, alias="cloud")
    return "cloud"


def create(daemon: Daemon, image: str, name: str, config: dict[str, str]) -> None:
    source = {"type": "image", "alias": image}
    daemon.do("POST", "/1.0/instances", {"name": name, "source": source, "config": config})


def run(daemon: Daemon, name: str, *command: str) -> str:
    return daemon.lxc("exec", name, "--", *command, timeout=180).stdout


def assert_done(daemon: Daemon, name: str, source: str) -> None:
    said = run(daemon, name, "cloud-init", "status", "--wait")
    assert "status: done" in said, run(daemon, name, "cat", "/var/log/cloud-init.log")[-8000:]
    assert run(daemon, name, "cloud-id").strip() == source


def address(daemon: Daemon, name: str) -> list[str]:
    links = json.loads(run(daemon, name, "ip", "-j", "-4", "address", "show", "eth0"))
    return [found["local"] for link in links for found in link["addr_info"]]


def test_cloud_init_reads_the_guest_api_and_runs_again_after_a_change(
    module_daemon: Daemon, cloud: str
) -> None:
    d = module_daemon
    config = {
        "cloud-init.user-data": USER_DATA,
        "user.user-data": "#cloud-config\nwrite_files: [{path: /etc/old, content: old}]\n",
        "cloud-init.vendor-data": VENDOR_DATA,
        "cloud-init.network-config": NETWORK.format(address="10.99.0.2"),
    }
    create(d, cloud, "c1", config)
    d.lxc("start", "c1")
    assert_done(d, "c1", "lxd")
    assert run(d, "c1", "id", "-un", "ada") == "ada\n"
    assert KEY in run(d, "c1", "cat", "/home/ada/.ssh/authorized_keys")
    assert run(d, "c1", "cat", "/etc/greeting") == "grüß dich\n"
    assert run(d, "c1", "cat", "/etc/vendor") == "vendor\n"
    assert run(d, "c1", "sh", "-c", "ls /etc/old 2>/dev/null || true") == ""
    assert run(d, "c1", "hostname") == "c1\n"
    assert address(d, "c1") == ["10.99.0.2"]

    changed = {
        "cloud-init.user-data": USER_DATA.replace("once", "again"),
        "cloud-init.network-config": NETWORK.format(address="10.99.0.3"),
    }
    d.do("PATCH", "/1.0/instances/c1", {"config": changed})
    d.lxc("restart", "c1")
    assert_done(d, "c1", "lxd")
    assert run(d, "c1", "cat", "/var/log/runs") == "once\nagain\n"
    assert address(d, "c1") == ["10.99.0.3"]


@pytest.mark.long
def test_cloud_init_reads_templates_where_the_guest_api_is_hidden(module_daemon: Daemon, cloud: str) -> None:
    d = module_daemon
    config = {
        "security.devlxd": "false",
        "user.user-data": USER_DATA,
        "user.network-config": NETWORK.format(address="10.99.0.4"),
    }
    create(d, cloud, "c2", config)
    templates = {
        f"/var/lib/cloud/seed/nocloud-net/{name}": {
            "when": ["create", "copy"],
            "template": f"{name}.tpl",
            "properties": {"default": "#cloud-config\n{}"},
        }
        for name in SEEDS
    }
    for name, text in SEEDS.items():
        d.do("POST", f"/1.0/instances/c2/metadata/templates?path={name}.tpl", text.encode())
    d.do("PATCH", "/1.0/instances/c2/metadata", {"templates": templates})
    d.lxc("start", "c2")
    assert_done(d, "c2", "nocloud")
    assert run(d, "c2", "cat", "/etc/greeting") == "grüß dich\n"
    assert KEY in run(d, "c2", "cat", "/home/ada/.ssh/authorized_keys")
    assert address(d, "c2") == ["10.99.0.4"]
