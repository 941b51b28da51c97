"""`utsuwad init` against running daemons: LXD's ways of setting one up, and all of it or nothing."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.daemon import Daemon

pytestmark = pytest.mark.root

UTSUWAD = (sys.executable, "-m", "utsuwa.daemon.main")


def init(daemon: Daemon, *options: str, input: str = "", code: int = 0) -> subprocess.CompletedProcess[str]:
    ended = subprocess.run(
        [*UTSUWAD, "init", *options],
        env={**os.environ, "UTSUWA_DIR": str(daemon.dir)},
        input=input,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ended.returncode == code, f"{ended.stdout}{ended.stderr}\n{daemon.log_tail()}"
    return ended


def everything(daemon: Daemon) -> dict[str, Any]:
    """All that `init` may change."""
    urls = ["/1.0/storage-pools", "/1.0/networks", "/1.0/projects", "/1.0/profiles"]
    lists = {url: daemon.get(f"{url}?recursion=1") for url in urls}
    lists["/1.0/networks"] = [n for n in lists["/1.0/networks"] if n["managed"]]
    return {"config": daemon.get("/1.0")["config"], **lists}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=30).close()
    except ConnectionRefusedError:
        return False
    return True


def test_auto_then_a_container_with_an_address(bare_daemon: Daemon, busybox_image: Any) -> None:
    init(bare_daemon, "--auto")
    first = everything(bare_daemon)
    (network,) = first["/1.0/networks"]
    assert network["name"].startswith("utsuwabr")
    assert network["config"]["ipv4.address"].endswith("/24")
    (pool,) = first["/1.0/storage-pools"]
    assert (pool["name"], pool["driver"]) == ("default", "overlay")
    init(bare_daemon, "--auto")
    init(bare_daemon, "--minimal")
    assert everything(bare_daemon) == first
    bare_daemon.import_image(busybox_image.metadata, busybox_image.rootfs, alias="busybox")
    bare_daemon.lxc("launch", "busybox", "c1")
    assert "eth0" in bare_daemon.get("/1.0/instances/c1/state")["network"]


def test_auto_with_address_and_password_opens_the_listener(bare_daemon: Daemon) -> None:
    port = free_port()
    options = ("--trust-password", "pw", "--network-address", "127.0.0.1", "--network-port", str(port))
    init(bare_daemon, *options, "--storage-backend", "dir", "--auto")
    assert bare_daemon.get("/1.0")["config"] == {
        "core.https_address": f"127.0.0.1:{port}",
        "core.trust_password": True,
    }
    assert accepts(port)
    assert bare_daemon.get("/1.0/storage-pools/default")["driver"] == "dir"
    again = init(bare_daemon, "--auto", "--storage-backend", "dir", code=1)
    assert "A storage pool already exists (default)" in again.stderr


def test_a_refused_option_changes_nothing(bare_daemon: Daemon) -> None:
    before = everything(bare_daemon)
    for options, reason in (
        (("--auto", "--preseed"), "--auto and --preseed cannot be used together"),
        (("--auto", "--storage-backend", "btrfs"), "storage driver 'btrfs' is not supported yet"),
        (("--auto", "--storage-create-loop", "5"), "a file system of their own"),
    ):
        assert reason in init(bare_daemon, *options, code=1).stderr
    assert everything(bare_daemon) == before


PRESEED = """
config: {{core.https_address: "127.0.0.1:{port}", images.auto_update_interval: 15}}
storage_pools: [{{name: data, driver: dir, config: {{source: }}}}]
networks: [{{name: {bridge}, type: bridge, config: {{ipv4.address: none, ipv6.address: none}}}}]
profiles:
- name: default
  devices: {{root: {{path: /, pool: data, type: disk}}}}
- name: test
  description: Test profile
  config: {{limits.memory: 2GB}}
  devices: {{eth0: {{name: eth0, nictype: bridged, parent: {bridge}, type: nic}}}}
"""


@pytest.fixture
def bridge() -> str:
    """A name that no other test takes."""
    return f"uti{os.getpid() % 100000}"


def test_preseed_creates_and_changes_objects(bare_daemon: Daemon, bridge: str) -> None:
    port, moved = free_port(), free_port()
    init(bare_daemon, "--preseed", input=PRESEED.format(port=port, bridge=bridge))
    assert accepts(port)
    config = bare_daemon.get("/1.0")["config"]
    assert config == {"core.https_address": f"127.0.0.1:{port}", "images.auto_update_interval": "15"}
    assert bare_daemon.get("/1.0/profiles/test")["devices"]["eth0"]["parent"] == bridge
    more = f"""
config: {{core.https_address: "127.0.0.1:{moved}"}}
storage_pools: [{{name: data, description: All data, config: {{rsync.bwlimit: 3}}}}]
networks: [{{name: {bridge}, config: {{bridge.mtu: 1400}}}}]
profiles: [{{name: test, config: {{limits.memory: , user.x: yes}}, devices: {{eth0: {{mtu: 1400}}}}}}]
"""
    init(bare_daemon, "--preseed", input=more)
    assert accepts(moved)
    assert not accepts(port)
    assert bare_daemon.get("/1.0")["config"]["images.auto_update_interval"] == "15"
    pool = bare_daemon.get("/1.0/storage-pools/data")
    assert (pool["description"], pool["config"]["rsync.bwlimit"]) == ("All data", "3")
    network = bare_daemon.get(f"/1.0/networks/{bridge}")["config"]
    assert (network["ipv4.address"], network["bridge.mtu"]) == ("none", "1400")
    profile = bare_daemon.get("/1.0/profiles/test")
    assert (profile["config"], profile["description"]) == ({"user.x": "yes"}, "Test profile")
    assert profile["devices"]["eth0"]["mtu"] == "1400"
    bare_daemon.do("DELETE", "/1.0/profiles/test")


@pytest.mark.parametrize(
    ("tail", "reason"),
    [
        (
            '- {name: last, config: {nonsense: "1"}}',
            "profile 'last': Unknown configuration key",
        ),
        ("- {name: last, devices: {root: {type: disk, path: /, pool: gone}}}", "'gone' does not exist"),
        ("- {name: last, bad: 1}", "unknown field 'bad' in entry 3 of profiles ('last')"),
    ],
)
def test_a_failing_last_part_undoes_all(bare_daemon: Daemon, bridge: str, tail: str, reason: str) -> None:
    before = everything(bare_daemon)
    port = free_port()
    ended = init(bare_daemon, "--preseed", input=PRESEED.format(port=port, bridge=bridge) + tail, code=1)
    assert reason in ended.stderr
    assert everything(bare_daemon) == before
    assert not accepts(port)
    assert not (bare_daemon.dir / "storage-pools" / "data").exists()
    assert not Path("/sys/class/net", bridge).exists()


def test_port_in_use_reverts_all_changes(bare_daemon: Daemon, bridge: str) -> None:
    init(bare_daemon, "--preseed", input="config: {core.trust_password: old}")
    before = everything(bare_daemon)
    with socket.create_server(("127.0.0.1", 0)) as server:
        text = PRESEED.format(port=server.getsockname()[1], bridge=bridge)
        ended = init(bare_daemon, "--preseed", input=text, code=1)
    assert "Cannot change the server config: Cannot listen" in ended.stderr
    assert ended.stderr.endswith("All changes were reverted\n")
    assert everything(bare_daemon) == before


def test_changes_of_existing_objects_are_reverted(bare_daemon: Daemon, bridge: str) -> None:
    init(bare_daemon, "--preseed", input=PRESEED.format(port=free_port(), bridge=bridge))
    before = everything(bare_daemon)
    text = f"""
storage_pools: [{{name: data, description: changed, config: {{rsync.bwlimit: 3}}}}]
networks: [{{name: {bridge}, config: {{bridge.mtu: 1400}}}}]
projects: [{{name: default, description: changed}}]
profiles: [{{name: test, config: {{limits.memory: }}, devices: {{eth0: {{mtu: 1400}}}}}}]
config: {{nonsense: 1}}
"""
    assert "nonsense" in init(bare_daemon, "--preseed", input=text, code=1).stderr
    assert everything(bare_daemon) == before
    bare_daemon.do("DELETE", "/1.0/profiles/test")


def test_an_interrupt_leaves_nothing(bare_daemon: Daemon) -> None:
    before = everything(bare_daemon)
    profiles = "".join(f"- {{name: p{n}}}\n" for n in range(3000))
    process = subprocess.Popen(
        [*UTSUWAD, "init", "--preseed"],
        env={**os.environ, "UTSUWA_DIR": str(bare_daemon.dir)},
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(f"profiles:\n{profiles}")
    process.stdin.close()
    deadline = time.monotonic() + 20
    while len(bare_daemon.get("/1.0/profiles")) < 5:
        assert time.monotonic() < deadline, "no profile came"
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.stderr is not None
    assert process.stderr.read() == "utsuwad: Interrupted. All changes were reverted\n"
    assert process.wait(30) == 1
    process.stderr.close()
    assert everything(bare_daemon) == before


def test_a_dump_makes_the_same_of_a_fresh_daemon(
    bare_daemon: Daemon, bridge: str, make_daemon: type[Daemon]
) -> None:
    port = free_port()
    init(bare_daemon, "--preseed", input=PRESEED.format(port=port, bridge=bridge))
    text = init(bare_daemon, "--dump").stdout
    before = everything(bare_daemon)
    init(bare_daemon, "--preseed", input=text)
    assert everything(bare_daemon) == before
    # What the second daemon cannot have beside the first one: the port and the bridge.
    content = yaml.safe_load(text)
    content["config"]["core.https_address"] = f"127.0.0.1:{free_port()}"
    del content["networks"]
    content["profiles"] = [p for p in content["profiles"] if p["name"] == "default"]
    second = make_daemon()
    try:
        second.start()
        init(second, "--preseed", input=yaml.safe_dump(content))
        again = yaml.safe_load(init(second, "--dump").stdout)
    finally:
        problems = second.close()
    assert problems == []
    assert again == {**content, "networks": []}
    bare_daemon.do("DELETE", "/1.0/profiles/test")


LXD_DUMP = """
config:
  backups.compression_algorithm: none
  candid.api.url: https://candid.example
  cluster.images_minimal_replica: "1"
  core.bgp_asn: "3"
  core.dns_address: :5353
  core.https_allowed_origin: https://panel.example
  core.metrics_address: :9
  core.proxy_http: http://proxy.example
  images.auto_update_interval: "12"
  maas.api.url: https://maas.example
  user.foo: bar
networks:
- config:
    bridge.hwaddr: 00:16:3e:11:22:33
    bridge.mtu: "1400"
    dns.domain: x.y
    dns.mode: managed
    ipv4.address: {subnet}
    ipv4.dhcp: "true"
    ipv4.dhcp.expiry: 1h
    ipv4.firewall: "true"
    ipv4.nat: "true"
    ipv6.address: none
    ipv6.dhcp: "false"
    user.z: "1"
  description: ""
  name: {bridge}
  type: bridge
  project: default
storage_pools:
- config:
    rsync.bwlimit: 10MiB
    rsync.compression: "false"
    source: /var/lib/lxd/storage-pools/default
    user.x: "1"
    volatile.initial_source: /dev/sdb
    volume.security.shifted: "true"
    volume.security.unmapped: "false"
    volume.size: 1GiB
    volume.snapshots.expiry: 3d
    volume.snapshots.pattern: snap%d
    volume.snapshots.schedule: '@daily'
  description: ""
  name: default
  driver: dir
profiles:
- config:
    agent.nic_config: "true"
    boot.autostart: "true"
    cloud-init.user-data: abc
    cluster.evacuate: auto
    environment.X: "y"
    limits.cpu: "2"
    limits.disk.priority: "5"
    limits.kernel.nofile: "3000"
    limits.memory: 1GiB
    linux.kernel_modules: a
    migration.incremental.memory: "true"
    nvidia.runtime: "false"
    raw.idmap: both 1000 1000
    raw.lxc: lxc.aa_profile=x
    security.devlxd: "true"
    security.nesting: "true"
    security.secureboot: "false"
    snapshots.expiry: 3d
    snapshots.schedule: '@daily'
    user.user-data: x
  description: ""
  devices: {{}}
  name: test
- config: {{}}
  description: Default LXD profile
  devices:
    eth0:
      name: eth0
      network: {bridge}
      type: nic
    root:
      path: /
      pool: default
      type: disk
  name: default
projects:
- config:
    features.images: "true"
    features.networks: "true"
    features.profiles: "true"
    features.storage.volumes: "true"
  description: Default LXD project
  name: default

"""
"""What `lxd init --dump` of LXD 5.0.2 has said, but for what this version does not serve."""


def test_dump_of_lxd_is_accepted(bare_daemon: Daemon, bridge: str) -> None:
    """Twice: what is there is changed then (lxd#9006)."""
    text = LXD_DUMP.format(bridge=bridge, subnet="10.77.41.1/24")
    init(bare_daemon, "--preseed", input=text)
    before = everything(bare_daemon)
    init(bare_daemon, "--preseed", input=text)
    assert everything(bare_daemon) == before
    pool = bare_daemon.get("/1.0/storage-pools/default")
    assert pool["config"]["source"] == str(bare_daemon.dir / "storage-pools" / "default")
    for kind, name in (("storage", "default"), ("network", bridge), ("profile", "test")):
        shown = bare_daemon.lxc(kind, "show", name).stdout
        bare_daemon.lxc(kind, "edit", name, input=shown)
        assert bare_daemon.lxc(kind, "show", name).stdout == shown
    bare_daemon.do("DELETE", "/1.0/profiles/test")


def test_questions_answered_by_lines(bare_daemon: Daemon) -> None:
    answers = ["yes", "p1", "dir", "no", "no", "no", "no", "yes"]
    shown = init(bare_daemon, input="\n".join(answers) + "\n").stdout
    assert "Do you want to configure a new storage pool? (yes/no) [default=yes]: " in shown
    assert "images.auto_update_interval: '0'" in shown
    assert bare_daemon.get("/1.0/profiles/default")["devices"] == {
        "root": {"type": "disk", "path": "/", "pool": "p1"}
    }
    assert bare_daemon.get("/1.0")["config"] == {"images.auto_update_interval": "0"}
    before = everything(bare_daemon)
    assert "input ended before the last question" in init(bare_daemon, input="no\n", code=1).stderr
    assert everything(bare_daemon) == before


def test_missing_daemon_is_reported(make_daemon: type[Daemon]) -> None:
    daemon = make_daemon()
    assert "No daemon responds at" in init(daemon, "--auto", code=1).stderr
    assert daemon.close() == []
