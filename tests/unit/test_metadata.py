"""The description of config keys that clients and docs read."""

from __future__ import annotations

from typing import Any

from utsuwa.api.metadata import configuration
from utsuwa.core.instance_keys import INSTANCE_KEYS
from utsuwa.storage.drivers import DRIVERS
from utsuwa.wire.codec import decode_json, encode


def _keys(kind: str, group: str) -> dict[str, dict[str, Any]]:
    listed = configuration()["configs"][kind][group]["keys"]
    return {name: facts for entry in listed for name, facts in entry.items()}


def test_every_key_of_instances_is_described() -> None:
    described = {
        name for group in configuration()["configs"]["instance"] for name in _keys("instance", group)
    }
    assert described == {key.name for key in INSTANCE_KEYS.keys}


def test_description_of_a_key() -> None:
    assert _keys("instance", "boot")["boot.host_shutdown_timeout"] == {
        "type": "integer",
        "shortdesc": "Seconds for a clean stop before the instance is killed, when the host shuts down.",
        "longdesc": "",
        "defaultdesc": "`30`",
        "liveupdate": "yes",
    }
    evacuation = _keys("instance", "miscellaneous")["cluster.evacuate"]
    assert evacuation["longdesc"] == "Checked and stored, without effect in this version."
    assert _keys("instance", "security")["security.secureboot"]["condition"] == "virtual machine"
    assert _keys("server", "core")["core.https_address"]["scope"] == "local"
    assert _keys("server", "core")["core.trust_password"]["scope"] == "global"
    assert _keys("instance", "boot")["boot.autorestart"]["choices"] == ["true", "false"]
    assert _keys("devices", "disk")["propagation"]["choices"][0] == "private"
    assert _keys("project", "features")["features.images"]["type"] == "bool"
    assert "pool" in _keys("devices", "disk")
    assert "host_name" in _keys("devices", "nic_p2p")
    assert "source" in _keys("storage_dir", "common")
    for driver in DRIVERS:
        assert _keys(f"storage_volume_{driver}", "common")["size"]["shortdesc"] == "Size of the volume."
    assert _keys("image", "properties")["os"]["shortdesc"] == "The distribution, such as `Debian`."


def test_it_travels_as_json() -> None:
    assert decode_json(encode(configuration())) == configuration()
