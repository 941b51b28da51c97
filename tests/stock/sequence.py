"""The order of the checks of the stock host; the outcome of each goes to the host as a line of JSON."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from tests.stock.checks import (
    apparmor,
    files,
    host_limits,
    limits,
    nested,
    public_site,
    quick_start,
    reboot,
    running_state,
    saved_guests,
    service,
)
from tests.stock.checks.asking import configure, must, run, utsuwa
from tests.stock.checks.check import CHECKOUT, STATE, Check, Checks

OUTCOMES = Path("/dev/ttyS1")
_AREAS = (
    quick_start,
    apparmor,
    limits,
    running_state,
    saved_guests,
    files,
    host_limits,
    nested,
    public_site,
)
BEFORE_REBOOT = Checks(check for area in _AREAS for check in area.checks)
BEFORE_REBOOT += [*limits.processors, *service.checks]
AFTER_REBOOT = Checks([*reboot.checks, *public_site.after_reboot])


def _report(record: dict[str, Any]) -> None:
    OUTCOMES.write_text(json.dumps(record) + "\n", encoding="ascii")


def _try(check: Check) -> bool:
    begin = time.monotonic()
    try:
        passed, words = True, str(check.run())
    except Exception as error:
        passed, words = False, f"{type(error).__name__}: {error}"
    seconds = round(time.monotonic() - begin, 1)
    _report({"name": check.name, "passed": passed, "seconds": seconds, "words": words[-6000:]})
    return passed


def before_reboot(marker: Path) -> None:
    first, *others = BEFORE_REBOOT.chosen()
    if not _try(first):
        return _report({"journal": _journal(), "done": True})
    busybox = CHECKOUT / "busybox"
    parts = [str(busybox / name) for name in ("meta.tar.xz", "rootfs.squashfs")]
    utsuwa("image", "import", *parts, "--alias", "busybox")
    configure("first", {"boot.autostart": "true"})
    if not all([_try(one) for one in others]):
        _report({"journal": _journal()})
    boot = Path("/proc/sys/kernel/random/boot_id").read_text()
    marker.write_text(json.dumps({"boot": boot, "at": time.time()}))
    must("systemctl", "reboot")
    return None


def after_reboot() -> None:
    if not all([_try(one) for one in AFTER_REBOOT.chosen()]):
        _report({"journal": _journal()})
    _report({"done": True})


def main() -> None:
    marker = STATE / "rebooted"
    try:
        if marker.exists():
            after_reboot()
        else:
            before_reboot(marker)
    except Exception as error:
        _report({"journal": f"{type(error).__name__}: {error}\n{_journal()}", "done": True})


def _journal() -> str:
    kernel = run("journalctl", "--no-pager", "--dmesg", "--lines=30").out
    return run("journalctl", "--no-pager", "--lines=120", "--unit=utsuwa*").out[-12000:] + kernel[-4000:]


if __name__ == "__main__":
    main()
