# `quickstart --uninstall`; sourced by it. It does not rely on a working daemon: it also removes what a broken one
# has left behind, and skips what does not exist.
# shellcheck shell=bash disable=SC2154

# The directories where shells look for completion scripts.
declare -A COMPLETIONS=(
    [bash]=/usr/local/share/bash-completion/completions/utsuwa
    [zsh]=/usr/local/share/zsh/site-functions/_utsuwa
    [fish]=/usr/local/share/fish/vendor_completions.d/utsuwa.fish
)

# The directory of man pages.
MANUALS=/usr/local/share/man

# Kernel limits raised by `utsuwad check --raise-limits`; they remain in effect until the next boot.
SYSCTL_FILE=/etc/sysctl.d/60-utsuwa.conf

# uninstall YES: remove program, daemon and state; ask for confirmation unless YES is true.
uninstall() {
    is_ours "$prefix" .stamp && is_ours "$UTSUWA_DIR" utsuwa.lock
    [ "$1" = true ] || confirm
    shut_down
    remove_units
    kill_rest
    stop_lxcfs
    remove_networks
    remove_mounts
    remove_cgroups
    say "Removing $UTSUWA_DIR and $prefix"
    remove_folder "$UTSUWA_DIR"
    remove_folder "$prefix"
    rm -f "$log"
    if [ "$prefix" = "$DEFAULT_PREFIX" ]; then
        remove_links
    fi
    # Another installation needs the limits as well.
    if [ "$UTSUWA_DIR" = "$DEFAULT_DIR" ] || [ ! -e "$DEFAULT_DIR" ]; then
        rm -f "$SYSCTL_FILE"
    fi
    if [ "$UTSUWA_DIR" = "$DEFAULT_DIR" ] && getent group "$GROUP" >/dev/null; then
        groupdel "$GROUP"
    fi
    say "Utsuwa was removed. Packages, and root's ids in /etc/subuid and /etc/subgid, are kept, as others may use them"
}

# A directory that is a mount point is emptied and kept.
remove_folder() {
    if mountpoint -q "$1"; then
        find "$1" -xdev -mindepth 1 -delete
    else
        rm -rf --one-file-system "$1"
    fi
}

# is_ours DIRECTORY FILE: check that a directory to be removed is an installation, not for example a home directory.
is_ours() {
    [ ! -e "$1" ] || [ -e "$1/$2" ] || [ -z "$(ls -A "$1")" ] ||
        fail "$1 does not look like Utsuwa's ($2 is missing in it); look at it and remove it by hand"
}

confirm() {
    local answer=""
    [ -t 0 ] || fail "this deletes every container and image in $UTSUWA_DIR for good; run it again with --yes"
    read -r -p "Delete every container and image in $UTSUWA_DIR, and Utsuwa itself, for good? (yes/no) " answer
    [ "$answer" = yes ] || fail "nothing was changed"
}

# The daemon stops the containers; if it is not running, it is started for that.
shut_down() {
    [ -d "$UTSUWA_DIR/database" ] && [ -x "$prefix/bin/utsuwad" ] || return 0
    say "Stopping all containers and the daemon"
    if ! is_up 2 && ! { uses_systemd && systemctl start utsuwa.service 2>/dev/null; }; then
        setsid "$prefix/bin/utsuwad" </dev/null >/dev/null 2>&1 &
    fi
    is_up 30 && "$prefix/bin/utsuwad" shutdown --force --timeout 60 || true
}

# Called when systemd does not restart the daemon any more.
kill_rest() {
    local pid
    if pid=$(daemon_pid); then
        kill -KILL "$pid" || true
    fi
    kill_containers
}

kill_containers() {
    local folder
    for folder in "$UTSUWA_DIR"/containers/*; do
        [ -L "$folder" ] && [ -n "$(type -P lxc-stop)" ] || continue
        lxc-stop --lxcpath "$UTSUWA_DIR/containers" --name "$(basename "$folder")" --kill --nolock 2>/dev/null || true
    done
}

remove_units() {
    local unit
    uses_systemd || return 0
    systemctl disable -q --now "${UNITS[@]}" 2>/dev/null || true
    for unit in "${UNITS[@]}"; do
        rm -f "/etc/systemd/system/$unit"
    done
    systemctl daemon-reload
    # A unit that ended without its daemon is in the state failed, and would be listed although it is removed.
    systemctl reset-failed "${UNITS[@]}" 2>/dev/null || true
}

# Only an lxcfs that the quick start has started itself.
stop_lxcfs() {
    [ "$UTSUWA_DIR" = "$DEFAULT_DIR" ] && [ -r "$LXCFS_PID" ] || return 0
    if grep -qsa "^lxcfs" "/proc/$(cat "$LXCFS_PID")/cmdline"; then
        kill "$(cat "$LXCFS_PID")" || true
    fi
    rm -f "$LXCFS_PID"
}

# The name of the daemon's table, cgroup and AppArmor profiles: utsuwa-<hash of the state directory>.
owner_name() {
    echo "utsuwa-$(printf %s "$(realpath -m "$UTSUWA_DIR")" | sha256sum | cut -c 1-8)"
}

# Each network has a directory with the name of its bridge.
remove_networks() {
    local folder name pid owner
    for folder in "$UTSUWA_DIR"/networks/*/; do
        [ -d "$folder" ] || continue
        name=$(basename "$folder")
        pid=$(cat "$folder/dnsmasq.pid" 2>/dev/null) || true
        if [ -n "$pid" ] && grep -qsaF "$folder" "/proc/$pid/cmdline"; then
            kill "$pid" || true
        fi
        if [ -d "/sys/class/net/$name/bridge" ]; then
            ip link delete "$name"
        fi
    done
    owner=$(owner_name)
    if [ -n "$(type -P nft)" ] && nft list tables 2>/dev/null | grep -qx "table inet $owner"; then
        nft delete table inet "$owner"
    fi
}

# In reverse order; a busy mount is detached.
remove_mounts() {
    local target
    awk -v top="$(realpath -m "$UTSUWA_DIR")/" 'index($5, top) == 1 { print $5 }' /proc/self/mountinfo | tac |
        while read -r target; do
            target=$(printf %b "$target")
            umount "$target" 2>/dev/null || umount --lazy "$target" || true
        done
}

remove_cgroups() {
    local folder
    while read -r folder; do
        find "$folder" -depth -type d -exec rmdir {} + 2>/dev/null || true
    done < <(find /sys/fs/cgroup -type d -name "$(owner_name)" 2>/dev/null)
}

remove_links() {
    local link
    for link in /usr/local/bin/utsuwa*; do
        [ -L "$link" ] && [[ $(readlink "$link") == "$prefix"/* ]] && rm -f "$link"
    done
    rm -f "${COMPLETIONS[@]}" "$MANUALS"/man1/utsuwa.1 "$MANUALS"/man1/utsuwa-*.1 "$MANUALS"/man8/utsuwad.8
}
