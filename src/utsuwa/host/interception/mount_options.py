"""What a file system may be mounted with: the flags of mount(2), and options by file system.

Options are an allow list. Others name further devices or files of the host (`device=`, `logdev=`,
`journal_path=`), or stop the host's kernel when a device contains errors (`errors=panic`).
"""

from __future__ import annotations

import os
import re

from utsuwa.host import syscalls

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_MAGIC, _MAGIC_MASK = 0xC0ED0000, 0xFFFF0000
"""Programs for ancient kernels set this in the upper half of the flags."""
_SILENT = 0x8000
_RELATIME = 0x200000
_ATTRIBUTES: Mapping[int, int] = {
    syscalls.MS_RDONLY: syscalls.MOUNT_ATTR_RDONLY,
    0x2: syscalls.MOUNT_ATTR_NOSUID,
    0x4: syscalls.MOUNT_ATTR_NODEV,
    0x8: syscalls.MOUNT_ATTR_NOEXEC,
    0x400: syscalls.MOUNT_ATTR_NOATIME,
    0x800: syscalls.MOUNT_ATTR_NODIRATIME,
    0x1000000: syscalls.MOUNT_ATTR_STRICTATIME,
}
"""Attributes of the mount by flag."""
_WORDS: Mapping[int, str] = {syscalls.MS_RDONLY: "ro", 0x10: "sync", 0x80: "dirsync", 0x2000000: "lazytime"}
"""Options of the file system by flag."""
_FUSE_WORDS: Mapping[int, str] = {
    **_WORDS,
    0x2: "nosuid",
    0x4: "nodev",
    0x8: "noexec",
    0x400: "noatime",
}
_MOST = 32
"""Number of options."""

_FLAG = re.compile(r"\Z")
_NUMBER = re.compile(r"=[0-9]{1,10}\Z")
_SIZE = re.compile(r"=[0-9]{1,10}[kKmMgG]?\Z")
_EXT = {
    **dict.fromkeys(
        (
            *("acl", "noacl", "user_xattr", "nouser_xattr", "barrier", "nobarrier", "discard", "nodiscard"),
            *("delalloc", "nodelalloc", "grpid", "nogrpid", "bsdgroups", "sysvgroups", "minixdf", "bsddf"),
            *("noload", "norecovery", "journal_checksum", "nojournal_checksum", "auto_da_alloc"),
            *("noauto_da_alloc", "init_itable", "noinit_itable", "dioread_nolock", "dioread_lock"),
        ),
        _FLAG,
    ),
    **dict.fromkeys(("barrier", "commit", "stripe", "inode_readahead_blks", "max_batch_time"), _NUMBER),
    "data": re.compile(r"=(?:journal|ordered|writeback)\Z"),
    "errors": re.compile(r"=(?:continue|remount-ro)\Z"),
}
_EXT["barrier"] = re.compile(r"(?:=[01])?\Z")
OPTIONS: Mapping[str, Mapping[str, re.Pattern[str]]] = {
    "btrfs": {
        **dict.fromkeys(
            (
                *("acl", "noacl", "autodefrag", "noautodefrag", "barrier", "nobarrier", "datacow"),
                *("nodatacow", "datasum", "nodatasum", "flushoncommit", "noflushoncommit", "ssd", "nossd"),
                *("ssd_spread", "nossd_spread", "treelog", "notreelog", "nodiscard", "nospace_cache"),
                *("user_subvol_rm_allowed", "skip_balance"),
            ),
            _FLAG,
        ),
        **dict.fromkeys(("commit", "subvolid", "metadata_ratio"), _NUMBER),
        "max_inline": _SIZE,
        "compress": re.compile(r"(?:=(?:no|(?:zlib|lzo|zstd)(?::[0-9]{1,2})?))?\Z"),
        "compress-force": re.compile(r"(?:=(?:no|(?:zlib|lzo|zstd)(?::[0-9]{1,2})?))?\Z"),
        "discard": re.compile(r"(?:=(?:sync|async))?\Z"),
        "space_cache": re.compile(r"(?:=v[12])?\Z"),
        "subvol": re.compile(r"=[^=,]{1,1024}\Z"),
    },
    "ext2": _EXT,
    "ext3": _EXT,
    "ext4": _EXT,
    "squashfs": {},
    "xfs": {
        **dict.fromkeys(
            (
                *("discard", "nodiscard", "inode32", "inode64", "largeio", "nolargeio", "noalign"),
                *("norecovery", "nouuid", "swalloc", "wsync", "filestreams", "noquota"),
            ),
            _FLAG,
        ),
        **dict.fromkeys(("logbufs", "sunit", "swidth"), _NUMBER),
        **dict.fromkeys(("allocsize", "logbsize"), _SIZE),
    },
}
"""The file systems that can be mounted for a guest, with the options that it may use and their values.

All of them are on one block device, which is the only thing of the host that they refer to.
"""
FORCED: Mapping[str, tuple[str, str]] = dict.fromkeys(("ext2", "ext3", "ext4"), ("errors", "remount-ro"))
"""Options that are always set, as a device would otherwise decide by itself what is done about errors."""


def plain_flags(flags: int) -> int:
    """Return the flags without those that have no meaning any more."""
    flags &= 0xFFFFFFFF
    if flags & _MAGIC_MASK == _MAGIC:
        flags &= ~_MAGIC_MASK
    return flags & ~(_SILENT | _RELATIME)


def is_new_mount(flags: int) -> bool:
    """Return whether a call mounts a file system, with flags that are known here."""
    return not flags & ~sum({*_ATTRIBUTES, *_WORDS})


def attributes(flags: int) -> int:
    """Return the attributes of the mount; devices on it can never be used."""
    chosen = sum(attribute for flag, attribute in _ATTRIBUTES.items() if flags & flag)
    if chosen & syscalls.MOUNT_ATTR_NOATIME:  # the kernel takes only one of them
        chosen &= ~syscalls.MOUNT_ATTR_STRICTATIME
    return chosen | syscalls.MOUNT_ATTR_NODEV


def options(kind: str, flags: int, data: bytes) -> list[tuple[str, str | None]] | None:
    """Return the options of a new file system with their values; None if one is not allowed."""
    found: dict[str, str | None] = {word: None for flag, word in _WORDS.items() if flags & flag}
    found.update([FORCED[kind]] if kind in FORCED else [])
    words = [word for word in os.fsdecode(data).split(",") if word]
    for word in words:
        name = word.partition("=")[0]
        allowed = OPTIONS[kind].get(name)
        if allowed is None or not allowed.match(word[len(name) :]) or len(words) > _MOST:
            return None
        found[name] = word[len(name) + 1 :] if "=" in word else None
    return [*found.items()]


def fuse_options(flags: int, data: bytes) -> bytes:
    """Return the options for a program of FUSE, which runs with the rights of the guest."""
    words = [word.encode() for flag, word in _FUSE_WORDS.items() if flags & flag]
    return b",".join([*words, *filter(None, data.split(b","))])
