# What `quickstart` and `test` do to a Debian 12 host; sourced by both. Everything here checks first
# and is quick, silent and harmless where nothing is to be done.
# shellcheck shell=bash

# What a running Utsuwa needs, and what builds the Debian image.
RUNTIME_PACKAGES=(lxc lxcfs lxd-client squashfs-tools xz-utils zstd gzip bzip2 tar uidmap nftables iproute2
    python3 python3-venv ca-certificates mmdebstrap debian-archive-keyring)
# What the tests need on top.
TEST_PACKAGES=(busybox-static acl attr libcap2-bin mount util-linux curl)
# The ids that containers get on a host where root has none: 1,000,000 to 1,000,999,999.
ROOT_ID_RANGE=1000000:1000000000

say() { echo "==> $*"; }

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

require_debian_root() {
    local ID="" VERSION_ID="" PRETTY_NAME="an unknown system"
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || . /etc/os-release
    [ "$ID" = debian ] && [ "$VERSION_ID" = 12 ] ||
        fail "this script is for Debian 12, and this is $PRETTY_NAME; run it in a Debian 12 machine, or install by hand as docs/architecture.md says"
    [ "$(id -u)" -eq 0 ] || fail "root is needed; run it as root, for example with sudo"
}

# ensure_packages NAME...: install the missing ones, without recommended packages.
ensure_packages() {
    local missing=() name
    for name in "$@"; do
        [ "$(dpkg-query -W -f='${db:Status-Status}' "$name" 2>/dev/null)" = installed ] || missing+=("$name")
    done
    [ ${#missing[@]} -gt 0 ] || return 0
    say "Installing ${missing[*]}"
    apt_get update
    apt_get install --no-install-recommends "${missing[@]}"
}

apt_get() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt-get $1 failed, see above; check the network and /etc/apt/sources.list"
    fi
    rm -f "$log"
}

# apt knows what it can fetch only after an update; a fresh machine may not have had one.
ensure_package_lists() {
    [ -n "$(apt-get indextargets --format '$(FILENAME)' 'Created-By: Packages' | xargs -r -d '\n' ls -d 2>/dev/null)" ] ||
        apt_get update
}

# Unprivileged containers need ids of their own.
ensure_id_range() {
    local file
    for file in /etc/subuid /etc/subgid; do
        grep -qs '^root:' "$file" && continue
        say "Adding root:$ROOT_ID_RANGE to $file"
        echo "root:$ROOT_ID_RANGE" >>"$file"
    done
}

# make_venv FOLDER STAMP REQUIREMENT...: a venv of Debian's Python; made anew when the stamp differs,
# VENV_CHANGED tells.
VENV_CHANGED=false
make_venv() {
    local folder=$1 stamp=$2
    shift 2
    [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    say "Installing Utsuwa into $folder"
    /usr/bin/python3 -m venv --clear "$folder"
    "$folder/bin/python" -m pip install -qq --disable-pip-version-check "$@" </dev/null ||
        fail "pip could not install what Utsuwa needs, see above; check the network and pip's configuration"
    echo "$stamp" >"$folder/.stamp"
    VENV_CHANGED=true
}
