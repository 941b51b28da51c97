"""Requirements of networks."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict, no_program
from utsuwa.host.system.probes import Facts


def evaluate(facts: Facts) -> Iterator[Verdict]:
    if "ip" not in facts.programs:
        yield no_program("veth and bridge", "iproute2", "it is unknown whether the kernel supports them")
    for kind, works in facts.links.items():
        if works:
            yield Verdict(kind, Status.FOUND, "interfaces can be created")
        else:
            yield Verdict(
                kind,
                Status.MISSING,
                "interfaces of this type cannot be created",
                "containers have no network" if kind == "veth" else "there are no managed networks",
                f"load the module {kind}, or use a kernel that supports it",
            )
    yield _ipv6(facts)
    yield _nftables(facts)
    if version := facts.programs.get("dnsmasq"):
        yield Verdict("dnsmasq", Status.FOUND, f"version {version}", source=Source.SETUP)
    else:
        yield no_program("dnsmasq", "dnsmasq-base", "managed networks provide neither DHCP nor DNS")


def _ipv6(facts: Facts) -> Verdict:
    if not facts.ipv6_lack:
        return Verdict("IPv6", Status.FOUND, "enabled")
    return Verdict(
        "IPv6",
        Status.DEGRADED,
        facts.ipv6_lack,
        "managed networks only have IPv4",
        "set the sysctls net.ipv6.conf.{all,default}.disable_ipv6=0, boot without ipv6.disable=1",
    )


def _nftables(facts: Facts) -> Verdict:
    cost = "containers can only reach their bridge"
    version = facts.programs.get("nft")
    if version is None:
        return no_program("nftables", "nftables", cost)
    if facts.nft_error:
        remedy = "load the modules nf_tables and nft_masq, or use a kernel that supports them"
        return Verdict("nftables", Status.MISSING, f"cannot load NAT rules: {facts.nft_error}", cost, remedy)
    return Verdict("nftables", Status.FOUND, f"version {version}", source=Source.SETUP)
