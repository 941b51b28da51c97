"""What networks need."""

from __future__ import annotations

from collections.abc import Iterator

from utsuwa.daemon.checks.verdicts import Source, Status, Verdict, no_program
from utsuwa.host.system.probes import Facts


def judge(facts: Facts) -> Iterator[Verdict]:
    if "ip" not in facts.programs:
        yield no_program("veth and bridge", "iproute2", "whether the kernel has them cannot be told")
    for kind, works in facts.links.items():
        if works:
            yield Verdict(kind, Status.FOUND, "interfaces can be made")
        else:
            yield Verdict(
                kind,
                Status.MISSING,
                "no interface of this kind can be made",
                "containers get no network" if kind == "veth" else "there are no managed networks",
                f"load the module {kind}, or use a kernel that has it",
            )
    yield _ipv6(facts)
    yield _nftables(facts)
    if version := facts.programs.get("dnsmasq"):
        yield Verdict("dnsmasq", Status.FOUND, f"version {version}", source=Source.SETUP)
    else:
        yield no_program(
            "dnsmasq", "dnsmasq-base", "managed networks give containers neither addresses nor names"
        )


def _ipv6(facts: Facts) -> Verdict:
    if not facts.ipv6_lack:
        return Verdict("IPv6", Status.FOUND, "interfaces have it")
    return Verdict(
        "IPv6",
        Status.DEGRADED,
        facts.ipv6_lack,
        "managed networks have IPv4 alone",
        "set the sysctls net.ipv6.conf.{all,default}.disable_ipv6=0, boot without ipv6.disable=1",
    )


def _nftables(facts: Facts) -> Verdict:
    cost = "containers reach nothing outside of their bridge"
    version = facts.programs.get("nft")
    if version is None:
        return no_program("nftables", "nftables", cost)
    if facts.nft_error:
        remedy = "load the modules nf_tables and nft_masq, or use a kernel that has them"
        return Verdict("nftables", Status.MISSING, f"no rules for NAT: {facts.nft_error}", cost, remedy)
    return Verdict("nftables", Status.FOUND, f"version {version}", source=Source.SETUP)
