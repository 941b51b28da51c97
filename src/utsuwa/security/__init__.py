"""Id maps, seccomp, AppArmor, TLS, authorization."""
