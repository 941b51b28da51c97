"""What confines a container: its lxc.conf, limits, nodes, seccomp and AppArmor."""
