"""What goes on inside of guests whose running state is saved: begun once, and checked again and again.

Shell scripts for busybox and Debian alike. A check succeeds if its status is 0 and its output is the same
each time, such as the pid of a service that must not have been started again.
"""

from __future__ import annotations

import shlex
from dataclasses import dataclass

PEER = "10.77.0.6"
"""The address of a container that echoes what it receives at port 5000."""

_TOOLS = """
cd /root
BUSYBOX=$(command -v /root/busybox || echo /bin/busybox)
background() { # NAME COMMAND...
    name=$1; shift
    setsid "$@" </dev/null >/dev/null 2>&1 &
    echo $! >/root/$name.pid
}
talk() { # NAME COMMAND..., which is to repeat what it reads
    name=$1; shift
    [ -p /root/$name.in ] || mkfifo /root/$name.in
    rm -f /root/$name.out
    background $name sh -c 'name=$0; exec "$@" <>/root/$name.in >/root/$name.out 2>&1' $name "$@"
    within 30 test -e /root/$name.out # opened after the FIFO, which loses what nobody has open to read
}
within() { # SECONDS COMMAND...
    tries=$(($1 * 20)); shift
    while [ $tries -gt 0 ]; do
        ! "$@" >/dev/null 2>&1 || return 0
        tries=$((tries - 1)); sleep 0.05
    done
    "$@"
}
runs() { kill -0 $(cat /root/$1.pid); }
fails() { ! "$@"; }
talks() {
    runs $1
    word=$(cat /proc/sys/kernel/random/uuid)
    echo $word 1<>/root/$1.in
    within 30 grep -q $word /root/$1.out
}
differs() { [ "$(eval "$2")" != "$1" ]; }
goes_on() { # SECONDS COMMAND, whose output is to change
    within $1 differs "$(eval "$2")" "$2"
}
unit() { systemctl show --property MainPID --property NRestarts $1; }
"""


@dataclass(frozen=True)
class Feature:
    """`begin` and `check` are scripts; `WAY` is that in which the guest was saved and restored."""

    check: str
    begin: str = ""


_UNIX_SERVER = """
use IO::Socket::UNIX;
my $listener = IO::Socket::UNIX->new(Local => "/root/unix.socket", Listen => 5);
while (1) { my $peer = $listener->accept or next; while (<$peer>) { syswrite $peer, $_ } }
"""
_UNIX_CLIENT = """
use IO::Socket::UNIX;
my $peer;
select undef, undef, undef, 0.05 until $peer = IO::Socket::UNIX->new(Peer => "/root/unix.socket");
while (<STDIN>) { syswrite $peer, $_; sysread $peer, my $answer, 100; syswrite STDOUT, $answer }
"""
_DATAGRAMS = """
use IO::Socket::INET;
my $in = IO::Socket::INET->new(LocalAddr => "127.0.0.1", LocalPort => 5001, Proto => "udp");
my $out = IO::Socket::INET->new(PeerAddr => "127.0.0.1", PeerPort => 5001, Proto => "udp");
while (<STDIN>) { $out->send($_); $in->recv(my $got, 100); syswrite STDOUT, $got }
"""
_LOCK = """
use Fcntl;
open my $file, ">", "/root/region" or die;
my $lock = pack("s s x4 q q l x4", F_WRLCK, 0, 0, 10, 0);
fcntl($file, F_SETLK, $lock) or exit 1;
sleep 1 while $ARGV[0];
"""
_WRITER = """
cat >writer <<'END'
exec >writer.log 2>&1
(echo .timeout 60000; while :; do echo 'insert into t values (1);'; sleep 0.02; done) | sqlite3 base
END
background writer sh writer
"""
_TERMINAL = """
use Fcntl;
sysopen my $master, "/dev/ptmx", O_RDWR | O_NOCTTY;
my ($unlocked, $number) = (pack("i", 0), pack("i", 0));
ioctl $master, 0x40045431, $unlocked;
ioctl $master, 0x80045430, $number;
my $slave = "/dev/pts/" . unpack("i", $number);
exec "sh", "-c", "exec cat <$slave >$slave" unless fork;
while (<STDIN>) { syswrite $master, $_; sysread $master, my $answer, 100; syswrite STDOUT, $answer }
"""
_SHARED_MEMORY = """
my $id = shmget(0, 100, 0600 | 01000);
shmwrite($id, "shared", 0, 6);
open my $file, ">", "/root/shm" or die; print $file $id; close $file;
sleep 1 while 1;
"""


def _perl(program: str) -> str:
    return f"perl -e {shlex.quote(program)}"


ANYWHERE = {
    "process": Feature(
        begin="background count sh -c 'i=0; while :; do i=$((i+1)); echo $i >n; sleep 0.05; done'",
        check="runs count; goes_on 30 'cat /root/n'",
    ),
    "fifo": Feature(begin="talk fifo cat", check="talks fifo"),
    "tmpfs": Feature(
        begin="mkdir tmpfs; mount -t tmpfs -o size=1m none tmpfs; echo kept >tmpfs/file",
        check="cat tmpfs/file; grep -c ' /root/tmpfs tmpfs rw' /proc/mounts",
    ),
    "deleted file": Feature(
        begin="background deleted sh -c 'exec 5<>gone; echo kept >&5; rm gone; while :; do sleep 1; done'; "
        "within 30 test ! -e gone",
        check="runs deleted; cat /proc/$(cat deleted.pid)/fd/5",
    ),
    "tcp": Feature(
        begin=f"talk tcp $BUSYBOX nc {PEER} 5000",
        # The peer of a restored snapshot has gone on since: its connection ends, and a new one can be made.
        check=f"""
        if [ $WAY = restore ]; then
            within 30 fails runs tcp
            talk tcp $BUSYBOX nc {PEER} 5000
        fi
        talks tcp
        """,
    ),
    "pair with an end down": Feature(
        begin="ip link add in0 type veth; ip address add 10.88.0.1/24 dev in0; ip link set in0 up",
        check="cat /sys/class/net/in0/carrier; ip route | grep -o '10.88.0.0/24 dev in0'",
    ),
    "network": Feature(
        check="ip -4 -o address show eth0 | sed 's/ *valid_lft.*//'; ip route; $BUSYBOX ping -c 1 -W 5 "
        f"{PEER} >/dev/null"
    ),
}
"""What busybox suffices for."""

SERVICES = {
    "syslog": Feature(
        check="word=$(cat /proc/sys/kernel/random/uuid); logger $word; "
        "within 30 grep -q $word /run/messages; cat /run/syslogd.pid"
    ),
    "cron": Feature(
        check='kill -0 $(cat /run/crond.pid); [ -z "$LONG" ] || goes_on 65 "cat /run/minutes"; '
        "cat /run/crond.pid"
    ),
    "cgroups": Feature(check="grep -o 'openrc.*' /proc/$(cat /run/crond.pid)/cgroup"),
}
"""Those of `RC_INIT`."""

RC_INIT = """\
#!/bin/sh
# As OpenRC does: services in the background, each with a pid file and a cgroup, then busybox' init.
mount -t tmpfs none /run
mkdir /run/crontabs
: >/run/minutes
echo '* * * * * date >>/run/minutes' >/run/crontabs/root
service() {
    name=$1; shift
    start-stop-daemon -S -b -m -p /run/$name.pid -x "$1" -- "$@"
    for tree in /sys/fs/cgroup /sys/fs/cgroup/unified /sys/fs/cgroup/pids; do
        [ -e $tree/cgroup.procs ] || continue
        mkdir $tree/openrc.$name && cat /run/$name.pid >$tree/openrc.$name/cgroup.procs
    done 2>/dev/null
}
service syslogd /bin/busybox syslogd -n -O /run/messages
service crond /bin/busybox crond -f -c /run/crontabs
exec /bin/busybox init
"""

_RUN_OFTEN = "systemd-run --quiet --property=StartLimitIntervalSec=0"
SYSTEMD = {
    "systemd": Feature(
        check="systemctl is-system-running; systemctl --failed --no-legend; "
        "systemd-run --quiet --wait true; systemctl daemon-reload"
    ),
    "journald": Feature(
        check="word=$(cat /proc/sys/kernel/random/uuid); echo $word | systemd-cat; journalctl --sync; "
        "journalctl --no-pager --grep $word >/dev/null; unit systemd-journald"
    ),
    "logind": Feature(check="systemctl restart systemd-logind; loginctl list-sessions --no-legend"),
    "networkd": Feature(check="networkctl --no-legend --no-pager list eth0 | grep -o configured"),
    "timer": Feature(
        begin=f"touch ticks; {_RUN_OFTEN} --unit=tick --on-active=1s --on-unit-active=1s "
        "--timer-property=AccuracySec=50ms sh -c 'echo x >>/root/ticks'",
        check="goes_on 30 'cat ticks'",
    ),
    "inotify": Feature(
        begin=f"touch watched changes; {_RUN_OFTEN} --unit=watch --path-property=PathChanged=/root/watched "
        "sh -c 'echo x >>/root/changes'",
        check="change() { echo x >watched; sleep 0.3; cat changes; }; goes_on 30 change",
    ),
    "unix sockets": Feature(
        begin=f"background server {_perl(_UNIX_SERVER)}; talk unix {_perl(_UNIX_CLIENT)}",
        check="runs server; talks unix",
    ),
    "udp": Feature(begin=f"talk udp {_perl(_DATAGRAMS)}", check="talks udp"),
    "pty": Feature(begin=f"talk pty {_perl(_TERMINAL)}", check="talks pty"),
    "locks": Feature(
        begin=f"background flock flock lock sleep infinity; background region {_perl(_LOCK)} 1; "
        "within 30 fails flock -n lock true",
        check=f"runs flock; runs region; fails flock -n lock true; fails {_perl(_LOCK)}",
    ),
    "shared memory": Feature(
        begin=f"background shm {_perl(_SHARED_MEMORY)}; within 30 test -s /root/shm",
        check="""runs shm; perl -e 'shmread($ARGV[0], my $text, 0, 6); print $text' $(cat /root/shm)""",
    ),
}
"""What a Debian has without further packages."""

PACKAGED = {
    "nginx": Feature(
        check="unit nginx; exec 3<>/dev/tcp/127.0.0.1/80; "
        r"printf 'GET / HTTP/1.0\r\n\r\n' >&3; head -n 1 <&3"
    ),
    "redis": Feature(begin="redis-cli set key kept", check="unit redis-server; redis-cli get key"),
    "cron": Feature(
        begin="touch minutes; echo '* * * * * root date >>/root/minutes' >/etc/cron.d/minutes",
        check='unit cron; [ -z "$LONG" ] || goes_on 65 "cat /root/minutes"',
    ),
    "sqlite": Feature(
        begin=f"sqlite3 base 'create table t (x)'; {_WRITER}",
        # A file of a restored snapshot has another inode number: then SQLite refuses to write to it.
        check=f"""
        if [ $WAY = restore ]; then
            runs writer
            within 30 grep -q 'write a readonly database' writer.log
            kill -- -$(cat writer.pid)
            {_WRITER}
        fi
        runs writer
        goes_on 60 "sqlite3 -cmd '.timeout 60000' base 'select count(*) from t'"
        sqlite3 -cmd '.timeout 60000' base 'pragma integrity_check'
        fails grep . writer.log
        """,
    ),
    "tmux": Feature(
        begin="tmux new-session -d -s work",
        check="word=$(cat /proc/sys/kernel/random/uuid); tmux send-keys -t work \"echo is''$word\" Enter; "
        "shows() { tmux capture-pane -p -t work | grep -q is$word; }; within 30 shows; "
        "tmux display-message -p '#{pid}'",
    ),
}
"""What `PACKAGES` bring to a Debian."""
PACKAGES = ("nginx-light", "redis-server", "cron", "tmux", "sqlite3")


def begin(features: dict[str, Feature]) -> str:
    """Return the script that begins all of them."""
    return "\n".join(["set -e", _TOOLS, *(feature.begin for feature in features.values())])


def check(features: dict[str, Feature], way: str, *, long: bool) -> str:
    """Return the script that checks all of them: each yields a line `NAME|STATUS|OUTPUT`."""
    lines = [_TOOLS, f"WAY={way} LONG={'1' if long else ''}"]
    for name, feature in features.items():
        lines += ["said=$(exec 2>&1; set -e", feature.check, "); status=$?"]
        lines += [f"""echo "{name}|$status|"$said"""]
    return "\n".join(lines)
