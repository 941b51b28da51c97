"""Attributes of files: capabilities and ACLs."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.stock.checks.asking import inside, push
from tests.stock.checks.check import CHECKOUT, Checks, expect

checks = Checks()

CONTAINERS = Path("/var/lib/utsuwa/storage-pools/default/containers")
CAPABILITY = "security.capability"
ACL = "system.posix_acl_access"
AS_USER = "setpriv --reuid={0} --regid={0} --clear-groups "


def _install_tools() -> None:
    packages = sorted((CHECKOUT / "packages").glob("*.deb"))
    for package in packages:
        push("first", f"/root/{package.name}", package.read_bytes())
    ended = inside("first", "dpkg --install /root/*.deb")
    expect(ended.code == 0, ended)


def _on_disk(path: str) -> Path:
    return CONTAINERS / "first/layer/upper" / path


@checks("files: setcap from inside is in force")
def setcap() -> str:
    _install_tools()
    script = """
        set -e
        echo secret >/root/secret; chmod 600 /root/secret
        cp /bin/cat /usr/local/bin/reader
        setcap cap_dac_read_search+ep /usr/local/bin/reader
        getcap /usr/local/bin/reader
    """
    expect("cap_dac_read_search=ep" in (made := inside("first", script)).out, made)
    without = inside("first", AS_USER.format(1234) + "cat /root/secret")
    expect("Permission denied" in without.err, without)
    ended = inside("first", AS_USER.format(1234) + "/usr/local/bin/reader /root/secret")
    expect(ended.out == "secret\n", ended)
    return made.out


@checks("files: a capability set inside is unshifted on disk")
def setcap_on_disk() -> str:
    file = _on_disk("usr/local/bin/reader")
    raw = os.getxattr(file, CAPABILITY)
    numbers = struct.unpack(f"<{len(raw) // 4}I", raw)
    owner = file.stat().st_uid
    # a third form of the attribute names the root user whose namespace it holds in, as a last number
    expect(len(numbers) == 5 or numbers[5:] == (0,), f"it belongs to the root user {numbers[5:]}")
    expect(owner == 0, f"the file belongs to {owner}")
    return raw.hex()


@checks("files: setfacl from inside is in force")
def setfacl() -> str:
    script = """
        echo shared >/srv/shared
        chmod 600 /srv/shared
        setfacl -m u:1234:r /srv/shared && getfacl -n /srv/shared
    """
    made = inside("first", script)
    expect("user:1234:r--" in made.out, made)
    allowed, refused = (inside("first", AS_USER.format(uid) + "cat /srv/shared") for uid in (1234, 1235))
    expect(allowed.out == "shared\n", allowed)
    expect("Permission denied" in refused.err, refused)
    return made.out


@checks("files: setfacl works on what the image brought and nothing has changed")
def setfacl_on_image() -> str:
    made = inside("first", "setfacl -m u:1234:rx /opt /usr/bin/env && getfacl -np /opt /usr/bin/env")
    expect(made.out.count("user:1234:r-x") == 2, made)
    return made.out


@checks("files: an ACL set inside is unshifted on disk")
def setfacl_on_disk() -> str:
    raw = os.getxattr(_on_disk("srv/shared"), ACL)
    # a version, then tag, permissions and id of each entry; 2 is a named user
    named = [entry[2] for entry in struct.iter_unpack("<HHI", raw[4:]) if entry[0] == 2]
    expect(named == [1234], f"it names the users {named}")
    return raw.hex()
