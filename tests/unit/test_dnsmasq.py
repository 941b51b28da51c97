"""dnsmasq's configuration: what it says for which settings, and that no value can add a line."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as settings_of_hypothesis
from hypothesis import strategies as st

from tests.support.instances import ref
from utsuwa.core.errors import InvalidConfig
from utsuwa.networks.drivers.bridge.dnsmasq import (
    DnsmasqFiles,
    configuration,
    host_file,
    host_line,
    port_file,
)
from utsuwa.networks.drivers.bridge.settings import settings
from utsuwa.networks.ports import Port

FILES = DnsmasqFiles(Path("/state/networks/br0"))
BOTH = {"ipv4.address": "10.1.2.1/24", "ipv6.address": "fd42:1::1/64"}


def conf(**keys: str) -> list[str]:
    config = BOTH | {key.replace("_", "."): value for key, value in keys.items()}
    return configuration(settings("br0", config, "o"), FILES, "dnsmasq", "nogroup").splitlines()


def ranges(lines: list[str]) -> list[str]:
    return [line.removeprefix("dhcp-range=") for line in lines if line.startswith("dhcp-range=")]


def test_the_usual() -> None:
    lines = conf()
    for line in (
        "user=dnsmasq",
        "group=nogroup",
        "no-hosts",
        "interface=br0",
        "bind-interfaces",
        "except-interface=lo",
        "listen-address=10.1.2.1",
        "listen-address=fd42:1::1",
        "domain=lxd",
        "local=/lxd/",
        "interface-name=_gateway.lxd,br0",
        "local=/2.1.10.in-addr.arpa/",
        "local=/0.0.0.0.0.0.0.0.1.0.0.0.2.4.d.f.ip6.arpa/",
        "dhcp-leasefile=/state/networks/br0/dnsmasq.leases",
        "dhcp-hostsdir=/state/networks/br0/dnsmasq.hosts",
        "dhcp-ignore-names",
        "enable-ra",
    ):
        assert line in lines
    assert ranges(lines) == [
        "10.1.2.2,10.1.2.254,255.255.255.0,1h",
        "fd42:1::,ra-stateless,ra-names,64",
    ]
    assert not any(line.startswith("conf-file") for line in lines)


def test_families() -> None:
    assert ranges(conf(ipv6_address="none")) == ["10.1.2.2,10.1.2.254,255.255.255.0,1h"]
    assert ranges(conf(ipv4_address="none")) == ["fd42:1::,ra-stateless,ra-names,64"]
    no_dhcp = conf(ipv4_dhcp="false", ipv6_address="none")
    assert ranges(no_dhcp) == []
    assert not any(line.startswith("dhcp") for line in no_dhcp)
    assert "listen-address=10.1.2.1" in no_dhcp


def test_ipv6() -> None:
    assert ranges(conf(ipv4_address="none", ipv6_dhcp="false")) == ["fd42:1::,ra-only,64"]
    stateful = conf(ipv4_address="none", ipv6_dhcp_stateful="true", ipv6_dhcp_expiry="2h")
    assert ranges(stateful) == ["fd42:1::2,fd42:1::ffff:ffff:ffff:ffff,64,2h"]
    assert "enable-ra" in stateful
    narrow = conf(ipv4_address="none", ipv6_dhcp_stateful="true", ipv6_dhcp_ranges="fd42:1::5-fd42:1::9")
    assert ranges(narrow) == ["fd42:1::5,fd42:1::9,64,1h"]


def test_options() -> None:
    lines = conf(
        ipv4_dhcp_ranges="10.1.2.5-10.1.2.9,10.1.2.20-10.1.2.29",
        ipv4_dhcp_gateway="10.1.2.250",
        ipv4_dhcp_routes="10.9.0.0/24, 10.1.2.9",
        dns_nameservers="10.1.2.53,fd42:1::53",
        dns_search="a.example,b.example",
        dns_domain="c.example",
        bridge_mtu="1400",
        raw_dnsmasq="log-queries",
    )
    assert ranges(lines)[:2] == ["10.1.2.5,10.1.2.9,255.255.255.0,1h", "10.1.2.20,10.1.2.29,255.255.255.0,1h"]
    for line in (
        "dhcp-option-force=3,10.1.2.250",
        "dhcp-option-force=121,10.9.0.0/24,10.1.2.9",
        "dhcp-option-force=6,10.1.2.53",
        "dhcp-option-force=option6:dns-server,[fd42:1::53]",
        "dhcp-option-force=option:domain-search,a.example,b.example",
        "dhcp-option-force=26,1400",
        "ra-param=br0,mtu:1400,0,0",
        "domain=c.example",
    ):
        assert line in lines
    assert lines[-1] == "conf-file=/state/networks/br0/dnsmasq.raw"
    assert "dhcp-option-force=3" in conf(ipv4_dhcp_gateway="none")


def test_names() -> None:
    assert "dhcp-ignore-names" not in conf(dns_mode="dynamic")
    silent = conf(dns_mode="none")
    assert "dhcp-ignore-names" in silent
    assert not any(line.startswith(("local=", "interface-name=")) for line in silent)
    assert "fd42:1::,ra-stateless,64" in ranges(silent)


def port(instance: str, ipv4: str = "", ipv6: str = "", project: str = "default") -> Port:
    return Port(ref(instance, project), "eth0", "br0", True, "00:16:3e:00:00:01", ipv4, ipv6)


def test_file_names() -> None:
    assert port_file(port("c1")) == "c1.eth0"
    assert port_file(port("c1", project="blue")) == "blue_c1.eth0"


@pytest.mark.parametrize(
    ("mode", "ipv4", "ipv6", "line"),
    [
        ("managed", "", "", "00:16:3e:00:00:01,c1\n"),
        ("managed", "10.1.2.5", "fd42:1::5", "00:16:3e:00:00:01,10.1.2.5,[fd42:1::5],c1\n"),
        ("managed", "none", "none", "00:16:3e:00:00:01,c1\n"),
        ("dynamic", "", "", ""),
        ("dynamic", "10.1.2.5", "", "00:16:3e:00:00:01,10.1.2.5,c1\n"),
        ("none", "10.1.2.5", "", "00:16:3e:00:00:01,10.1.2.5\n"),
        ("none", "", "", ""),
    ],
)
def test_hosts(mode: str, ipv4: str, ipv6: str, line: str) -> None:
    assert host_line(port("c1", ipv4, ipv6), mode) == line


@given(st.text(max_size=20))
def test_a_host_is_one_line(text: str) -> None:
    try:
        line = host_line(port(text, text), "managed")
    except InvalidConfig:
        return
    assert line.count("\n") == 1
    assert "\r" not in line


def dhcp_host(*fields: str) -> str:
    return ",".join(("00:16:3e:00:00:01", *fields)) + "\n"


@pytest.mark.parametrize(
    ("instance", "line"),
    [
        ("ignore", dhcp_host("Ignore")),
        ("infinite", dhcp_host("Infinite")),
        ("INFINITE", dhcp_host("Infinite")),
        ("Web", dhcp_host("web")),
        ("h", dhcp_host("h")),
        ("Ab--c", dhcp_host("ab--c")),
    ],
)
def test_names_are_not_interpreted_as_dnsmasq_keywords(instance: str, line: str) -> None:
    assert host_line(port(instance), "managed") == line


INSTANCE_NAMES = st.from_regex(r"[A-Za-z](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?", fullmatch=True)
NASTY_NAMES = st.sampled_from(
    ["ignore", "infinite", "Ignore", "INFINITE", "set", "id", "tag", "net", "m", "h1", "w", "dd", "e1h"]
    + ["Xn--A", "xn--a", "Ab--C", "localhost", "a" * 63, "A" * 63]
)


@given(st.lists(INSTANCE_NAMES | NASTY_NAMES, min_size=1))
def test_every_instance_name_is_a_name_in_dnsmasqs_grammar(names: list[str]) -> None:
    """What dnsmasq's parser does with a word of a `dhcp-host` line, for those that hold no colon."""
    for name in names:
        word = host_line(port(name), "managed").strip().split(",")[-1]
        assert word not in ("infinite", "ignore")
        assert not word.rstrip("wdhms").isdigit(), "a lease time"
        assert word.lower() == name.lower()


@pytest.mark.processes
@pytest.mark.skipif(shutil.which("dnsmasq") is None, reason="needs dnsmasq")
@settings_of_hypothesis(max_examples=20, deadline=None)
@given(st.lists(INSTANCE_NAMES | NASTY_NAMES, min_size=50, max_size=200))
def test_dnsmasq_accepts_every_instance_name(names: list[str]) -> None:
    """Upper-case names with dashes in the third and fourth place were refused, the address with the name."""
    with tempfile.TemporaryDirectory() as folder:
        conf = Path(folder, "conf")
        lines = [host_line(port(name), "managed") for name in names]
        conf.write_text("".join(f"dhcp-host={line}" for line in lines))
        done = subprocess.run(["dnsmasq", "--test", f"--conf-file={conf}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@given(st.text(min_size=1), st.text(min_size=1))
def test_dnsmasq_reads_the_file_of_every_device(instance: str, device: str) -> None:
    name = host_file(f"i{instance}", device)
    assert name.isascii()
    assert len(name) <= 255
    assert "/" not in name
    assert not name.startswith((".", "#"))
    assert not name.endswith("~")


def test_files_of_hosts_are_named_plainly_where_that_is_safe() -> None:
    assert host_file("blue_c1", "eth0") == "blue_c1.eth0"
    assert host_file("c1", "eth0~") == "c1.eth0%7E"
    assert len({host_file("c1", "ü" * 80), host_file("c2", "ü" * 80)}) == 2


def test_process_is_identified_by_its_config_file() -> None:
    assert FILES.argv == ("dnsmasq", "--conf-file=/state/networks/br0/dnsmasq.conf")
