"""Metrics of running instances, for the clients of the API and for a monitoring system."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from prometheus_client import parser

from tests.support import tls
from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.tls import Identity, make_identity
from utsuwa.wire import metrics
from utsuwa.wire.metrics import Family

pytestmark = pytest.mark.root

URL = "/1.0/metrics"
MIB = 2**20
Sample = tuple[dict[str, str], float]


@pytest.fixture(scope="module")
def d(module_daemon: Daemon, busybox: str) -> Daemon:
    """The module's daemon with a running and a stopped instance, and one that runs in another project."""
    daemon = module_daemon
    source = {"type": "image", "alias": busybox}
    features = {"features.images": "false", "features.profiles": "false"}
    daemon.do("POST", "/1.0/projects", {"name": "web", "config": features})
    for project, name, config in (
        ("default", "c1", {"limits.memory": "64MiB"}),
        ("default", "c2", {}),
        ("web", "c3", {}),
    ):
        url = f"/1.0/instances?project={project}"
        daemon.do("POST", url, {"name": name, "source": source, "config": config})
    for name, project in (("c1", "default"), ("c3", "web")):
        daemon.do("PUT", f"/1.0/instances/{name}/state?project={project}", {"action": "start"})
    return daemon


def samples_in(text: str) -> dict[str, list[Sample]]:
    families = parser.text_string_to_metric_families(text)
    found: dict[str, list[Sample]] = {}
    for family in families:
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def scrape(daemon: Daemon, query: str = "") -> dict[str, list[Sample]]:
    reply = daemon.api("GET", URL + query)
    assert reply.status == 200
    return samples_in(reply.body.decode())


def names(samples: list[Sample]) -> set[str]:
    return {labels["name"] for labels, _ in samples}


def value(samples: list[Sample], **labels: str) -> float:
    (found,) = [amount for own, amount in samples if labels.items() <= own.items()]
    return found


def test_running_instances_have_all_metrics(d: Daemon) -> None:
    d.lxc("exec", "c1", "--", "sh", "-c", "dd if=/dev/zero of=/file bs=1M count=4 oflag=direct")
    found = scrape(d)
    families = {one.name for one in vars(metrics).values() if isinstance(one, Family)}
    assert found.keys() == families
    assert names(found["lxd_procs_total"]) == {"c1", "c3"}
    own = {"name": "c1", "project": "default", "type": "container"}
    assert value(found["lxd_procs_total"], **own) >= 1
    assert value(found["lxd_memory_MemTotal_bytes"], **own) == 64 * MIB
    assert 0 < value(found["lxd_memory_MemFree_bytes"], **own) < 64 * MIB
    assert value(found["lxd_network_transmit_packets_total"], device="lo", **own) == 0
    size = value(found["lxd_filesystem_size_bytes"], name="c1", project="default", mountpoint="/")
    assert 0 < value(found["lxd_filesystem_avail_bytes"], name="c1") < size
    (fstype,) = {labels["fstype"] for labels, _ in found["lxd_filesystem_free_bytes"]}
    assert fstype == "overlay"
    written = [amount for labels, amount in found["lxd_disk_written_bytes_total"] if labels["name"] == "c1"]
    assert sum(written) >= 4 * MIB


def test_figures_are_those_of_the_instances_state(d: Daemon) -> None:
    d.lxc("exec", "c1", "--", "sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done")
    state = d.get("/1.0/instances/c1/state")
    found = scrape(d)
    seconds = sum(amount for labels, amount in found["lxd_cpu_seconds_total"] if labels["name"] == "c1")
    # The kernel counts user and system time by ticks, and the sum of both precisely.
    assert seconds == pytest.approx(state["cpu"]["usage"] / 1e9, rel=0.5)
    sent = value(found["lxd_network_transmit_bytes_total"], name="c1", device="eth0")
    assert sent >= state["network"]["eth0"]["counters"]["bytes_sent"]


def test_project_can_be_chosen(d: Daemon) -> None:
    assert names(scrape(d, "?project=web")["lxd_procs_total"]) == {"c3"}
    assert d.api("GET", f"{URL}?project=none").status == 404


def test_frozen_instances_are_included(d: Daemon) -> None:
    d.do("PUT", "/1.0/instances/c1/state", {"action": "freeze"})
    try:
        assert "c1" in names(scrape(d)["lxd_procs_total"])
    finally:
        d.do("PUT", "/1.0/instances/c1/state", {"action": "unfreeze"})


@pytest.mark.parametrize(
    ("accept", "kind"),
    [("", metrics.TEXT), ("application/openmetrics-text;version=1.0.0", metrics.OPENMETRICS)],
)
def test_format_is_the_one_that_the_client_accepts(d: Daemon, accept: str, kind: str) -> None:
    reply = d.api("GET", URL, headers={"Accept": accept})
    assert reply.headers["content-type"] == kind
    assert reply.body.endswith(b"# EOF\n")
    assert (b"# TYPE lxd_cpu_seconds counter" in reply.body) is bool(accept)


# ---- over the network


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return make_identity(tmp_path_factory.mktemp("monitoring"), "monitoring")


@pytest.fixture
def trusted(d: Daemon, identity: Identity) -> Iterator[dict[str, Any]]:
    """The certificate for metrics, restricted as the test sets it."""
    body = {"type": "metrics", "name": "monitoring", "certificate": base64.b64encode(identity.der).decode()}
    d.do("POST", "/1.0/certificates", body)
    yield body
    d.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")


@pytest.fixture(scope="module")
def address(d: Daemon) -> str:
    chosen = tls.free_address()
    d.lxc("config", "set", "core.metrics_address", chosen)
    return chosen


def test_metrics_certificate_opens_metrics_alone(
    d: Daemon, address: str, identity: Identity, trusted: dict[str, Any]
) -> None:
    reply = tls.request(address, "GET", URL, identity=identity)
    assert names(samples_in(reply.body.decode())["lxd_procs_total"]) == {"c1", "c3"}
    for other in ("/", "/1.0", "/1.0/instances"):
        reply = tls.request(address, "GET", other, identity=identity)
        assert (reply.status, reply.error) == (404, "not found")


def test_restricted_metrics_certificate_shows_its_projects(
    d: Daemon, address: str, identity: Identity, trusted: dict[str, Any]
) -> None:
    url = f"/1.0/certificates/{identity.fingerprint}"
    d.do("PUT", url, {"type": "metrics", "name": "monitoring", "restricted": True, "projects": ["web"]})
    found = samples_in(tls.request(address, "GET", URL, identity=identity).body.decode())
    assert names(found["lxd_procs_total"]) == {"c3"}
    assert "lxd_operations_total" not in found
    found = samples_in(tls.request(address, "GET", f"{URL}?project=default", identity=identity).body.decode())
    assert found == {}


def test_strangers_are_refused_unless_metrics_are_open(d: Daemon, address: str, identity: Identity) -> None:
    reply = tls.request(address, "GET", URL, identity=identity)
    assert (reply.status, reply.error) == (403, "not authorized")
    d.lxc("config", "set", "core.metrics_authentication", "false")
    try:
        found = samples_in(tls.request(address, "GET", URL).body.decode())
        assert names(found["lxd_procs_total"]) == {"c1", "c3"}
    finally:
        d.lxc("config", "unset", "core.metrics_authentication")
    assert tls.request(address, "GET", URL).status == 403


def test_address_that_cannot_be_used_is_refused(d: Daemon, address: str) -> None:
    failed = d.lxc("config", "set", "core.metrics_address", "192.0.2.1:9100", check=False)
    assert failed.returncode != 0
    assert "Cannot listen on core.metrics_address '192.0.2.1:9100'" in failed.stderr
    assert tls.request(address, "GET", URL).status == 403  # the old one is still served


# ---- what the daemon does


def test_the_debug_address_has_that_alone_for_whom_the_server_trusts(d: Daemon, identity: Identity) -> None:
    address = tls.free_address()
    d.lxc("config", "set", "core.debug_address", address)
    url = "/internal/debug/tasks"
    assert tls.request(address, "GET", url, identity=identity).status == 403
    body = {"type": "client", "name": "admin", "certificate": base64.b64encode(identity.der).decode()}
    d.do("POST", "/1.0/certificates", body)
    try:
        names_of_tasks = [
            task["name"] for task in tls.request(address, "GET", url, identity=identity).metadata
        ]
        assert names_of_tasks
        waiting = [task for task in d.get(url) if any("serve_until_stopped" in f for f in task["frames"])]
        assert len(waiting) == 1
        assert any("MainThread" in thread["name"] for thread in d.get("/internal/debug/threads"))
        memory = d.get("/internal/debug/memory")
        assert memory["objects"] >= sum(memory["types"].values()) > 0
        assert tls.request(address, "GET", "/1.0", identity=identity).status == 404
        restricted = {"type": "client", "name": "admin", "restricted": True, "projects": ["web"]}
        d.do("PUT", f"/1.0/certificates/{identity.fingerprint}", restricted)
        assert tls.request(address, "GET", url, identity=identity).status == 403
    finally:
        d.do("DELETE", f"/1.0/certificates/{identity.fingerprint}")
        d.lxc("config", "unset", "core.debug_address")
    with pytest.raises(ConnectionRefusedError):
        tls.request(address, "GET", url, identity=identity)


# ---- the client


def test_top_shows_who_uses_most(d: Daemon) -> None:
    d.lxc("exec", "c1", "--", "sh", "-c", "(while :; do :; done) >/dev/null 2>&1 & echo $! >/pid")
    try:
        said = utsuwa_client(d, "top", "--count=1", "--format=json", "--all-projects").stdout
        first, second = json.loads(said)
        table = utsuwa_client(d, "top", "-n", "1", "--sort=name").stdout
    finally:
        d.lxc("exec", "c1", "--", "sh", "-c", "kill $(cat /pid)")
    assert (first["name"], second["name"]) == ("c1", "c3")
    assert first["cpu_percent"] > second["cpu_percent"] >= 0
    assert re.search(r"(?m)^\| NAME +\| CPU% ", table)
    assert re.search(r"(?m)^\| c1 +\| +[\d.]+ \| [\d.]+s ", table)
    assert "c3" not in table


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--sort=age"], "Cannot sort by 'age'"),
        (["--delay=0"], "1 or more"),
        (["c1"], "only a remote can be given"),
    ],
)
def test_top_refuses_what_it_does_not_know(d: Daemon, arguments: list[str], message: str) -> None:
    failed = utsuwa_client(d, "top", *arguments, check=False)
    assert failed.returncode != 0
    assert message in failed.stderr
