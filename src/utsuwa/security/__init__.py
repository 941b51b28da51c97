"""Id maps, seccomp, AppArmor, TLS, authorisation."""
