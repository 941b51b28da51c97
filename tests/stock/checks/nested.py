"""Kernel modules, and programs that run containers themselves: Docker, Podman and systemd."""

from __future__ import annotations

from pathlib import Path

from tests.stock.checks.asking import (
    configure,
    delete,
    fetch,
    inside,
    kill,
    launch,
    must,
    push,
    refused,
    run,
    start,
    state_of,
    systemd_of,
    utsuwa,
    wait_for,
)
from tests.stock.checks.check import CHECKOUT, Checks, expect
from tests.stock.checks.limits import FILL_MEMORY, no_memory

checks = Checks()


@checks(
    "kernel modules: those of linux.kernel_modules are loaded, and without one an instance does not start"
)
def kernel_modules() -> str:
    loaded = Path("/sys/module/dummy")
    expect(not loaded.exists(), "the module dummy is loaded already")
    launch("moduled", {"linux.kernel_modules": "overlay, dummy"})
    try:
        expect(loaded.exists(), "the module dummy was not loaded")
        missing = {"linux.kernel_modules": "no_such_module"}
        reason = refused("PATCH", "/1.0/instances/moduled", {"config": missing})
        expect("'no_such_module'" in reason, reason)
        kill("moduled")
        configure("moduled", missing)
        reason = refused("PUT", "/1.0/instances/moduled/state", {"action": "start"})
        expect("'no_such_module' of linux.kernel_modules was not loaded" in reason, reason)
        expect(state_of("moduled")["status"] == "Stopped", "it runs")
    finally:
        delete("moduled")
        run("modprobe", "--remove", "dummy")
    return reason


RUN_DOCKER = "docker run --rm --sysctl net.ipv4.ip_forward=0 busybox cat /proc/sys/net/ipv4/ip_forward"
SERVE = "echo served >/index.html && exec httpd -f -h /"
IMPORT_BUSYBOX = """
set -e
mkdir -p /root/image/bin /root/image/mnt
for applet in $(busybox --list); do ln -sf busybox /root/image/bin/$applet; done
cp --remove-destination $(command -v busybox) /root/image/bin/
tar -C /root/image -c . | {} import - busybox
"""
"""Makes an image of the busybox inside, for Docker or Podman."""


def _limits_and_publishes(program: str, port: int) -> None:
    """Expect the limit of a container's memory to hold, and another one's port to be reached from outside."""
    no_memory(inside("box", f"{program} run --rm --memory 64m busybox {FILL_MEMORY}"))
    published = f"{program} run --detach --publish {port}:80 busybox sh -c '{SERVE}'"
    web = inside("box", f"{published} && hostname -I")
    expect(web.code == 0, web)
    address = web.out.splitlines()[-1].split()[0]
    wait_for("the port", lambda: fetch(f"http://{address}:{port}/") == "served\n")


@checks("docker: it works in an instance, on overlays, with limits and published ports", long=True)
def docker() -> str:
    files = [str(CHECKOUT / "docker" / name) for name in ("metadata.tar.xz", "rootfs.squashfs")]
    utsuwa("image", "import", *files, "--alias", "docker")
    utsuwa("launch", "docker", "box", "--profile", "default", "--profile", "docker")
    expect(Path("/sys/module/nf_nat").exists(), "the modules of the profile are not loaded")
    expect(systemd_of("box").out.split() == ["running"], inside("box", "systemctl --failed"))
    imported = inside("box", IMPORT_BUSYBOX.format("docker"))
    expect(imported.code == 0, imported)
    ran = inside("box", RUN_DOCKER)
    expect(ran.out == "0\n", ran)
    driver = inside("box", "docker info --format '{{.Driver}} {{.SecurityOptions}}'")
    expect(driver.out.startswith("overlay2 "), driver)
    _limits_and_publishes("docker", 8080)
    return f"{driver.out}{_denials()}"


@checks("docker: a runc that opens /proc/sys in a mount of its own works, too", long=True)
def newer_runc() -> str:
    (package,) = (CHECKOUT / "docker").glob("runc_*.deb")
    push("box", "/root/runc.deb", package.read_bytes())
    installed = inside("box", "dpkg --install /root/runc.deb")
    expect(installed.code == 0, installed)
    ran = inside("box", f"{RUN_DOCKER} && runc --version")
    expect(ran.out.startswith("0\n"), ran)
    return ran.out


@checks("podman: it works beside Docker, on overlays, with limits and published ports", long=True)
def podman() -> str:
    imported = inside("box", IMPORT_BUSYBOX.format("podman"))
    expect(imported.code == 0, imported)
    driver = inside("box", "podman info --format '{{.Store.GraphDriverName}} {{.Host.OCIRuntime.Name}}'")
    expect(driver.out.startswith("overlay "), driver)
    _limits_and_publishes("podman", 8081)
    denials = _denials()
    expect(not denials, denials)
    return driver.out


STRICT = "systemd-run --wait --pipe --quiet -p DevicePolicy=strict -p 'DeviceAllow=/dev/null rw'"


@checks("bpf: systemd and Podman inside use device programs, where cgroups are of version 2 alone", long=True)
def device_programs() -> str:
    before = inside("box", f"{STRICT} head -c 1 /dev/zero")
    expect(before.code == 0, before)
    keys = [f"security.syscalls.intercept.{name}=true" for name in ("bpf", "bpf.devices")]
    utsuwa("config", "set", "box", *keys)
    kill("box")
    start("box")
    expect(systemd_of("box").out.split() == ["running"], inside("box", "systemctl --failed"))
    denied = inside("box", f"{STRICT} head -c 1 /dev/zero")
    expect(denied.code != 0 and "Operation not permitted" in denied.err, denied)
    allowed = inside("box", f"{STRICT} head -c 1 /dev/null")
    expect(allowed.code == 0, allowed)
    ran = inside("box", "podman run --rm busybox echo ran")
    expect(ran.out == "ran\n", ran)
    return denied.err


@checks("docker: a privileged container works, and AppArmor has denied nothing to any", long=True)
def no_denials() -> str:
    try:
        privileged = inside("box", "docker run --rm --privileged busybox mount -t tmpfs none /mnt")
        denials = _denials()
    finally:
        delete("box")
    expect(privileged.code == 0, privileged)
    expect(not denials, denials)
    return privileged.out


def _denials() -> str:
    """What the kernel has denied to programs in the instance `box`."""
    lines = must("journalctl", "--dmesg", "--output", "cat", "--no-pager").splitlines()
    return "\n".join(line for line in lines if 'apparmor="DENIED"' in line and "_box" in line)
