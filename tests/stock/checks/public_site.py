"""The public site as a service."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import signal
from pathlib import Path

from tests.stock.checks.asking import fetch, main_pid, must, query, run, utsuwa, wait_for
from tests.stock.checks.check import CHECKOUT, Checks, expect

checks, after_reboot = Checks(), Checks()

SITE = "utsuwa-try.service"
SITE_URL = "http://127.0.0.1:8480"
SITE_SETTINGS, SITE_DATA = Path("/etc/utsuwa-try"), Path("/var/lib/utsuwa-try")
SITE_UNIT = Path("/etc/systemd/system") / SITE


@checks("public site: systemd runs it confined, as its user, and again when it is killed", long=True)
def public_site() -> str:
    image = query("/1.0/images/aliases/busybox")["target"]
    utsuwa("image", "alias", "create", "try", image)
    must("utsuwad", "try", "init")
    settings = SITE_SETTINGS / "try.yaml"
    # No daemon runs in this image: containers of it would never be ready.
    settings.write_text(re.sub("(?m)^ready: .*$", "ready: 0", settings.read_text()))
    unit = (CHECKOUT / "scripts/systemd" / SITE).read_text()
    SITE_UNIT.write_text(unit.replace("@PREFIX@", "/opt/utsuwa"))
    must("systemctl", "daemon-reload")
    must("systemctl", "enable", "--now", SITE)
    shown = _served()
    killed = main_pid(SITE)
    os.kill(killed, signal.SIGKILL)
    wait_for("another site", lambda: main_pid(SITE) not in (0, killed))
    _served()
    return shown


def _served() -> str:
    """What the site runs as, once it answers."""
    wait_for("the site", lambda: fetch(f"{SITE_URL}/api/site").startswith("{"))
    expect("<title>" in (page := fetch(SITE_URL)), page)
    pid, user = main_pid(SITE), pwd.getpwnam("utsuwa-try")
    status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    expect(status["Uid"].split() == [str(user.pw_uid)] * 4, status)
    expect(int(status["CapEff"], 16) == int(status["CapPrm"], 16) == 0, status)
    expect(status["NoNewPrivs"] == "1", status)
    written = {path.name: path.stat().st_uid for path in SITE_DATA.iterdir()}
    expect(written == dict.fromkeys(("feedback.jsonl", "statistics.jsonl"), user.pw_uid), written)
    refused = run("nsenter", f"--mount=/proc/{pid}/ns/mnt", "touch", f"{SITE_SETTINGS}/new")
    expect("Read-only file system" in refused.err, refused)
    return f"{user.pw_name}, {status['CapBnd']}"


@after_reboot("reboot: the public site is served again, and can be removed", long=True)
def site_again() -> str:
    shown = _served()
    must("systemctl", "disable", "--now", SITE)
    ended = must("systemctl", "show", SITE, "--property=Result,ExecMainStatus")
    expect("Result=success" in ended and "ExecMainStatus=0" in ended, ended)
    trusted = utsuwa("config", "trust", "list", "--format", "csv").splitlines()
    (fingerprint,) = [line.split(",")[3] for line in trusted if "utsuwa-try" in line]
    utsuwa("config", "trust", "remove", fingerprint)
    utsuwa("project", "delete", "try")
    shutil.rmtree(SITE_SETTINGS)
    shutil.rmtree(SITE_DATA)
    SITE_UNIT.unlink()
    must("userdel", "utsuwa-try")
    return shown
