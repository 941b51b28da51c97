"""The host: processes, system calls, liblxc, netlink, mounts. No policy."""
