# Where mmdebstrap gets a Debian from: where this host, a Debian too, gets its own. Sourced by the makers.
# shellcheck shell=bash

KEYRING=/usr/share/keyrings/debian-archive-keyring.gpg

# debian_sources SUITE: lines for sources.list.
debian_sources() {
    local host
    host=$(. /etc/os-release && echo "$VERSION_CODENAME")
    apt-get indextargets --format "deb [signed-by=$KEYRING] \$(REPO_URI) \$(RELEASE) main" \
        "Created-By: Packages" "Origin: Debian" "Component: main" |
        sed -nE "s/ $host((-updates|-security)? main)\$/ $1\1/p" | sort -u
}

# This host's way to its servers: proxies and the like, for apt.conf.
acquire_settings() {
    apt-config dump | grep -E '^Acquire::[^ ]+ "[^"]+";$' | grep -v '^Acquire::IndexTargets' || true
    echo 'Acquire::Languages "none";'
}
