"""Network and mount namespaces for processes that run system tests, to isolate them from each other.

This isolates interfaces, firewall rules, ports, abstract unix sockets and mounts; cgroups and loop devices
are shared, and can be attributed to the daemon by their names.
"""

from __future__ import annotations

import ctypes
import os
import subprocess

# The /sys from before shows the other network namespace's interfaces. The cgroups below it are carried over.
SETUP = """
ip link set lo up
# A new network namespace takes these over from the host; the tests begin as on a host that forwards nothing.
echo 0 >/proc/sys/net/ipv4/ip_forward
if [ -e /proc/sys/net/ipv6 ]; then echo 0 >/proc/sys/net/ipv6/conf/all/forwarding; fi
keep=$(mktemp -d) && mount -t tmpfs none "$keep" && mkdir "$keep/c" && mount --rbind /sys/fs/cgroup "$keep/c"
mount -t sysfs sysfs /sys && mount --rbind "$keep/c" /sys/fs/cgroup && umount -l "$keep" && rmdir "$keep"
# A CRIU of the host would be used in place of the one that a test provides, or takes away.
for place in /usr/local/sbin /usr/local/bin /usr/sbin /usr/bin; do
    [ -e $place/criu ] || [ -L $place/criu ] || continue
    upper=$(mktemp -d) && mount -t tmpfs none "$upper" && mkdir "$upper/u" "$upper/w"
    mknod "$upper/u/criu" c 0 0
    mount -t overlay -o "lowerdir=$place,upperdir=$upper/u,workdir=$upper/w" none $place
    umount -l "$upper" && rmdir "$upper"
done
"""
_CLONE_NEWNS, _CLONE_NEWNET = 0x20000, 0x40000000
_host: list[int] = []
"""Descriptors of the network and mount namespaces that the process began in, once it has left them."""


def enter() -> None:
    """Move the calling thread, and its future children, into new namespaces.

    Later calls do nothing. Raises OSError if it is not permitted.
    """
    if _host:
        return
    came_from = [
        os.open(f"/proc/thread-self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "mnt")
    ]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS | _CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"no namespaces of their own for the tests: {os.strerror(number)}")
    _host[:] = came_from
    setup = f"set -e; mount --make-rslave /{SETUP}"
    subprocess.run(["sh", "-c", setup], check=True, stdin=subprocess.DEVNULL)


def host_prefix() -> tuple[str, ...]:
    """Return a prefix for commands that need the machine's network and mounts."""
    if not _host:
        return ()
    net, mnt = (f"/proc/{os.getpid()}/fd/{number}" for number in _host)
    return ("nsenter", f"--net={net}", f"--mount={mnt}", "--")
