"""Starting programs with the C library's `posix_spawn` without blocking the daemon's other threads.

`subprocess` holds the GIL from the fork until exec has completed, which takes 2 ms with a daemon's memory;
here the GIL is released.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import signal
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

_libc = ctypes.CDLL(None)
_ROOM = 1024
"""Bytes for opaque objects of the C library: 336 and 80 for glibc on x86_64."""
_SETSIGDEF, _SETSIGMASK, _SETSID = 0x04, 0x08, 0x80
_IGNORED = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGHUP, 32, 33)
"""Signals that may be ignored by Python, the C library or the parent (a background shell, nohup), which new
processes would inherit."""
_WORD = 8 * ctypes.sizeof(ctypes.c_ulong)


def start(
    argv: Sequence[str],
    env: Mapping[str, str],
    streams: tuple[int, int, int],
    *,
    cwd: Path | None = None,
    pass_fds: Sequence[int] = (),
) -> int:
    """Start a program as a session leader; return its pid, to be reaped by the caller.

    It gets the descriptors `streams` as 0, 1 and 2, and `pass_fds`; a name without a slash is searched in
    `env`'s PATH. Raises OSError if it cannot be started.
    """
    program = argv[0] if "/" in argv[0] else shutil.which(argv[0], path=env.get("PATH", os.defpath))
    if program is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    pid = ctypes.c_int()
    with _actions(streams, cwd, pass_fds) as actions, _attributes() as attributes:
        failed = _libc.posix_spawn(
            ctypes.byref(pid),
            os.fsencode(program),
            actions,
            attributes,
            _strings(argv),
            _strings([f"{name}={value}" for name, value in env.items()]),
        )
    if failed:
        raise OSError(failed, os.strerror(failed), argv[0])
    return pid.value


def _strings(texts: Sequence[str]) -> ctypes.Array[ctypes.c_char_p]:
    encoded = [os.fsencode(text) for text in texts]
    if any(b"\0" in text for text in encoded):
        raise OSError(errno.EINVAL, "a NUL character in an argument")
    return (ctypes.c_char_p * (len(encoded) + 1))(*encoded, None)


@contextlib.contextmanager
def _actions(streams: tuple[int, int, int], cwd: Path | None, pass_fds: Sequence[int]) -> Iterator[Any]:
    """Yield the file actions: what the new process does with descriptors and its working directory.

    All descriptors of the daemon are close-on-exec; if none is passed on, any others are closed too.
    """
    actions = ctypes.create_string_buffer(_ROOM)
    _check(_libc.posix_spawn_file_actions_init(actions))
    try:
        for target, descriptor in enumerate(streams):
            _check(_libc.posix_spawn_file_actions_adddup2(actions, descriptor, target))
        for descriptor in pass_fds:  # onto itself, which clears close-on-exec
            _check(_libc.posix_spawn_file_actions_adddup2(actions, descriptor, descriptor))
        if cwd is not None:
            _check(_libc.posix_spawn_file_actions_addchdir_np(actions, os.fsencode(cwd)))
        if not pass_fds:
            _check(_libc.posix_spawn_file_actions_addclosefrom_np(actions, 3))
        yield actions
    finally:
        _libc.posix_spawn_file_actions_destroy(actions)


@contextlib.contextmanager
def _attributes() -> Iterator[Any]:
    """Yield the attributes: a new session, no signals blocked or ignored."""
    attributes = ctypes.create_string_buffer(_ROOM)
    signals = (ctypes.c_ulong * (_ROOM // _WORD))()
    _check(_libc.posix_spawnattr_init(attributes))
    try:
        _check(_libc.posix_spawnattr_setsigmask(attributes, signals))
        for number in _IGNORED:
            # sigaddset rejects the C library's internal signals
            signals[(number - 1) // _WORD] |= 1 << (number - 1) % _WORD
        _check(_libc.posix_spawnattr_setsigdefault(attributes, signals))
        flags = ctypes.c_short(_SETSIGDEF | _SETSIGMASK | _SETSID)
        _check(_libc.posix_spawnattr_setflags(attributes, flags))
        yield attributes
    finally:
        _libc.posix_spawnattr_destroy(attributes)


def _check(failed: int) -> None:
    if failed:
        raise OSError(failed, os.strerror(failed))
