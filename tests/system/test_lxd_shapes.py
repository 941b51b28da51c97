"""Replies have the fields and types of LXD 5.0.2, whose clients may read any of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest

from tests.support.client import utsuwa_client
from tests.support.daemon import Daemon
from tests.support.networks import create, launch

pytestmark = pytest.mark.root

TYPES = {str: "s", bool: "b", int: "i", list: "[]", dict: "{}", type(None): "0"}
"""As in the tables below: `name:s` is the field `name`, a string; one without a type is a string too."""

_COUNTERS = "bytes_received:i bytes_sent:i packets_received:i packets_sent:i"
_INSTANCE = "architecture config:{} devices:{} ephemeral:b profiles:[] stateful:b description created_at"
_INSTANCE += (
    " expanded_config:{} expanded_devices:{} name status status_code:i last_used_at location type project"
)
_STATE = "status status_code:i disk:{} memory:{} pid:i processes:i cpu:{}"
_IMAGE = (
    "auto_update:b properties:{} public:b expires_at profiles:[] aliases:[] architecture cached:b filename"
)
_IMAGE += " fingerprint size:i type created_at last_used_at uploaded_at"
_VOLUME = "config:{} description name type used_by:[] location content_type project created_at"
_LINK = "addresses:[] counters:{} hwaddr mtu:i state type bond:0 vlan:0 ovn:0"


@dataclass(frozen=True)
class Shape:
    """The reply to a GET of `url`, in it the object at `path`.

    `later` are fields that LXD got after 5.0.2; its older clients ignore them.
    """

    url: str
    fields: str
    path: tuple[str | int, ...] = ()
    later: str = ""


SHAPES = (
    Shape(
        "/1.0",
        "config:{} api_extensions:[] api_status api_version auth public:b auth_methods:[] environment:{}",
    ),
    Shape(
        "/1.0",
        "addresses:[] architectures:[] certificate certificate_fingerprint driver driver_version firewall"
        " kernel kernel_architecture kernel_features:{} kernel_version lxc_features:{} os_name os_version"
        " project server server_clustered:b server_event_mode server_name server_pid:i server_version storage"
        " storage_version storage_supported_drivers:[]",
        ("environment",),
    ),
    Shape("/1.0/images/{image}", _IMAGE, later="project"),
    Shape("/1.0/images?recursion=1", _IMAGE, (0,), later="project"),
    Shape("/1.0/images/{image}", "name description", ("aliases", 0)),
    Shape("/1.0/images/aliases/busybox", "description target name type"),
    Shape("/1.0/instances/one", _INSTANCE),
    Shape("/1.0/instances?recursion=1", _INSTANCE, (0,)),
    Shape("/1.0/instances?recursion=2", f"{_INSTANCE} backups:0 state:{{}} snapshots:[]", (0,)),
    Shape("/1.0/instances?recursion=2", f"{_INSTANCE} backups:0 state:{{}} snapshots:0", (1,)),
    Shape("/1.0/instances/one/state", f"{_STATE} network:{{}}"),
    Shape("/1.0/instances/two/state", f"{_STATE} network:0"),
    Shape("/1.0/instances/one/state", "usage:i usage_peak:i swap_usage:i swap_usage_peak:i", ("memory",)),
    Shape(
        "/1.0/instances/one/state",
        "addresses:[] counters:{} hwaddr host_name mtu:i state type",
        ("network", "eth0"),
    ),
    Shape(
        "/1.0/instances/one/state",
        f"{_COUNTERS} errors_received:i errors_sent:i packets_dropped_outbound:i packets_dropped_inbound:i",
        ("network", "eth0", "counters"),
    ),
    Shape("/1.0/instances/one/state", "family address netmask scope", ("network", "eth0", "addresses", 0)),
    Shape(
        "/1.0/instances/one/snapshots/s0",
        "expires_at architecture config:{} created_at devices:{} ephemeral:b expanded_config:{}"
        " expanded_devices:{} last_used_at name profiles:[] stateful:b size:i",
        later="description",
    ),
    Shape(
        "/1.0/instances/one/metadata", "architecture creation_date:i expiry_date:i properties:{} templates:{}"
    ),
    Shape(
        "/1.0/networks/br",
        "config:{} description name type used_by:[] managed:b status locations:[]",
        later="project",
    ),
    Shape(
        "/1.0/networks/lo",
        "config:{} description name type used_by:[] managed:b status locations:0",
        later="project",
    ),
    Shape("/1.0/networks/br/state", f"{_LINK} bridge:{{}}"),
    Shape("/1.0/networks/lo/state", f"{_LINK} bridge:0"),
    Shape("/1.0/networks/br/state", _COUNTERS, ("counters",)),
    Shape("/1.0/networks/br/leases", "hostname hwaddr address type location", (0,)),
    Shape("/1.0/profiles/default", "config:{} description devices:{} name used_by:[]", later="project"),
    Shape("/1.0/projects/default", "config:{} description name used_by:[]"),
    Shape("/1.0/projects/default/state", "Limit:i Usage:i", ("resources", "instances")),
    Shape(
        "/1.0/storage-pools/default",
        "config:{} description name driver used_by:[] status locations:[]",
    ),
    Shape("/1.0/storage-pools/default/resources", "used:i total:i", ("space",)),
    Shape("/1.0/storage-pools/default/resources", "used:i total:i", ("inodes",)),
    Shape("/1.0/storage-pools/default/volumes/container/one", _VOLUME),
    Shape("/1.0/storage-pools/default/volumes/container?recursion=1", _VOLUME, (1,)),
    Shape(
        "/1.0/storage-pools/default/volumes/container/one/snapshots/s0",
        "description expires_at name config:{} content_type created_at",
    ),
    Shape(
        "/1.0/warnings?recursion=1",
        "status uuid location project type count:i first_seen_at last_seen_at last_message severity"
        " entity_url",
        (0,),
    ),
    Shape(
        "/1.0/operations?recursion=1",
        "id class description created_at updated_at status status_code:i resources:{} metadata:{}"
        " may_cancel:b err location",
        ("running", 0),
    ),
    Shape("/1.0/cluster", "server_name enabled:b member_config:[]"),
)


@pytest.fixture(scope="module")
def world(module_net: Daemon) -> Daemon:
    """The running instance `one` with a lease and a snapshot, the stopped `two`, and a command that waits."""
    d = module_net
    create(d, "br", ipv4_address="10.77.0.1/24", ipv6_address="none")
    launch(d, "one", "br")
    d.lxc("snapshot", "one", "s0")
    d.lxc("init", "busybox", "two")
    d.do("POST", "/internal/testing/warnings", {"type_code": 24, "message": "by a test"})
    d.api("POST", "/1.0/instances/one/exec", {"command": ["cat"], "wait-for-websocket": True})
    return d


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"{shape.url} {shape.path}")
def test_fields_and_types(world: Daemon, shape: Shape) -> None:
    image = world.get("/1.0/images/aliases/busybox")["target"]
    found: Any = world.get(shape.url.format(image=image))
    for step in shape.path:
        found = found[step]
    fields = (field.partition(":") for field in shape.fields.split())
    expected = {name: kind or "s" for name, _, kind in fields}
    assert {
        name: TYPES[type(value)] for name, value in found.items() if name not in shape.later.split()
    } == expected


def test_an_instance_that_was_never_started(world: Daemon) -> None:
    assert world.get("/1.0/instances/two")["last_used_at"] == "1970-01-01T00:00:00Z"
    assert world.lxc("list", "two", "-c", "nl", "--format", "csv").stdout == "two,\n"
    listed = utsuwa_client(world, "list", "two", "-c", "nl", "--format", "csv").stdout
    assert listed == "two,\n"
    assert "Last Used" not in utsuwa_client(world, "info", "two").stdout


@pytest.mark.parametrize(
    "url",
    [
        "/1.0",
        "/1.0/instances/one",
        "/1.0/instances/one?recursion=1",
        "/1.0/instances/one/snapshots/s0",
        "/1.0/networks/br",
        "/1.0/networks/lo",
        "/1.0/profiles/default",
        "/1.0/projects/default",
        "/1.0/storage-pools/default/volumes/container/one",
        "/1.0/storage-pools/default/volumes/container/one/snapshots/s0",
        "/1.0/cluster",
    ],
)
def test_replies_with_an_etag(world: Daemon, url: str) -> None:
    first, second = (world.api("GET", url).headers["etag"] for _ in range(2))
    assert first == second != ""
