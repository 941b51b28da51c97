#!/bin/bash
# Install a root file system from a kit, without a network: install.sh KIT >rootfs.squashfs
#
# It runs in a container that shows the programs of the host. Maintainer scripts and commands of the definition
# run in a chroot inside of that. Messages go to standard error; the reason of a failure is the last of them.
set -euo pipefail
umask 022
kit=$1

# dash, which runs hooks of apt, cannot write to descriptors above 9: none of the caller's may take up lower ones.
for descriptor in /proc/$$/fd/*; do
    case ${descriptor##*/} in
        0 | 1 | 2 | 255) ;;
        *) eval "exec ${descriptor##*/}>&-" ;;
    esac
done

fail() {
    echo "utsuwa: $1"
    exit 1
}

# -exports: overlay mounts with an index need file handles, which a squashfs made from a tar lacks. What
# mksquashfs says of the root folder's own entry and of ACLs (systemd sets them anew) is not worth a line.
build() {
    mmdebstrap --mode=root --variant=minbase ${PACKAGES:+"--include=$PACKAGES"} --format=tar \
        --dpkgopt="$kit/dpkg.cfg" --customize-hook="$kit/customize" "$SUITE" - \
        "deb [trusted=yes] copy:$kit/repository ./" |
        mksquashfs - "$kit/rootfs.squashfs" -tar -exports -root-mode 755 -noappend -quiet -no-progress -comp zstd \
            -Xcompression-level 9 2>&1 >/dev/null |
        { grep -vE '^(Empty tar filename|Unrecognised tar xattr|Unexpected EOF|FATAL ERROR: Error occ)' || true; }
}

install() {
    local tool
    for tool in mmdebstrap mksquashfs apt-get dpkg tar; do
        [ -n "$(type -P "$tool")" ] ||
            fail "$tool is missing on the server's host: apt-get install mmdebstrap squashfs-tools"
    done
    . "$kit/settings"
    export SOURCE_DATE_EPOCH LC_ALL=C.UTF-8 TMPDIR=$kit/work
    mkdir "$TMPDIR"
    chmod 755 "$kit" "$TMPDIR"
    if ! build; then
        [ ! -e "$kit/failure" ] || cat "$kit/failure"
        exit 1
    fi
}

install >&2 </dev/null
cat "$kit/rootfs.squashfs"
