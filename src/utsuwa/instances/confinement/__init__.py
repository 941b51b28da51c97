"""Confinement of containers: lxc.conf, limits, device nodes, seccomp and AppArmor."""
