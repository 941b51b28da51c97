"""Which kernel modules are loaded, and what is said of one that cannot be."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from utsuwa.core.errors import HostError, ProcessFailed
from utsuwa.host.system import kernel_modules


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that can load modules, and has loaded `nf_nat`."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/modules").touch()
    (tmp_path / "sys/module/nf_nat").mkdir(parents=True)
    monkeypatch.setattr(kernel_modules, "in_user_namespace", lambda: False)
    return tmp_path


@pytest.mark.parametrize(
    ("value", "missing"),
    [
        ("", []),
        ("nf_nat", []),
        ("nf-nat", []),
        ("overlay, nf_nat,ip_vs", ["overlay", "ip_vs"]),
    ],
)
def test_modules_that_are_not_loaded(root: Path, value: str, missing: list[str]) -> None:
    assert kernel_modules.missing(value, root) == missing


def test_a_kernel_that_loads_no_modules(root: Path) -> None:
    (root / "proc/modules").unlink()
    assert kernel_modules.missing("overlay", root) == []


def test_a_container(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_modules, "in_user_namespace", lambda: True)
    assert kernel_modules.missing("overlay", root) == []


async def test_one_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Sequence[str]] = []

    async def run(argv: Sequence[str]) -> None:
        ran.append(argv)
        if argv[-1] == "evil":
            raise ProcessFailed(
                argv, 1, "modprobe: FATAL: Module evil not found in directory /lib/modules/6\n"
            )

    monkeypatch.setattr(kernel_modules, "run", run)
    monkeypatch.setattr(kernel_modules, "missing", lambda value: value.split(","))
    with pytest.raises(
        HostError, match=r"'evil' of linux\.kernel_modules was not loaded: Module evil not found in"
    ):
        await kernel_modules.load("good,evil,other")
    assert [argv[-1] for argv in ran] == ["good", "evil"]
    assert all(argv[-2] == "--" for argv in ran), "a name could be taken for an option"
