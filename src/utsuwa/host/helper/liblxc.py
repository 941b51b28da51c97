"""Bindings for liblxc with ctypes: the functions needed, with the layout of `struct lxc_container` (liblxc
5).

liblxc only appends members to the struct, so newer versions are compatible.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable

_POINTER = ctypes.c_void_p
_STRINGS = ctypes.POINTER(ctypes.c_char_p)

# The function pointers of `struct lxc_container`, which follow its data members, in order.
_FUNCTIONS = """
    is_defined state is_running freeze unfreeze init_pid load_config start startl stop want_daemonize
    want_close_all_fds config_file_name wait set_config_item destroy save_config create createl rename
    reboot shutdown clear_config clear_config_item get_config_item get_running_config_item get_keys
    get_interfaces get_ips get_cgroup_item set_cgroup_item get_config_path set_config_path clone
    console_getfd console attach attach_run_wait attach_run_waitl snapshot snapshot_list
    snapshot_restore snapshot_destroy may_control add_device_node remove_device_node attach_interface
    detach_interface checkpoint restore destroy_with_snapshots snapshot_destroy_all migrate console_log
    reboot2 mount umount seccomp_notify_fd seccomp_notify_fd_active init_pidfd devpts_fd
"""

_ATTACH_DEFAULT = 0x0000FFFF
_ALL_NAMESPACES = -1
_DETECT_PERSONALITY = -1
_CLEAR_ENVIRONMENT = 1
_NO_LOG = -9


class _Container(ctypes.Structure):
    _fields_ = (
        ("name", _POINTER),
        ("configfile", _POINTER),
        ("pidfile", _POINTER),
        ("slock", _POINTER),
        ("privlock", _POINTER),
        ("numthreads", ctypes.c_int),
        ("lxc_conf", _POINTER),
        ("error_string", _POINTER),
        ("error_num", ctypes.c_int),
        ("daemonize", ctypes.c_bool),
        ("config_path", _POINTER),
        *((name, _POINTER) for name in _FUNCTIONS.split()),
    )


class _AttachOptions(ctypes.Structure):
    _fields_ = (
        ("attach_flags", ctypes.c_int),
        ("namespaces", ctypes.c_int),
        ("personality", ctypes.c_long),
        ("initial_cwd", ctypes.c_char_p),
        ("uid", ctypes.c_uint32),
        ("gid", ctypes.c_uint32),
        ("env_policy", ctypes.c_int),
        ("extra_env_vars", _STRINGS),
        ("extra_keep_env", _STRINGS),
        ("stdin_fd", ctypes.c_int),
        ("stdout_fd", ctypes.c_int),
        ("stderr_fd", ctypes.c_int),
        ("log_fd", ctypes.c_int),
        ("lsm_label", ctypes.c_char_p),
        ("groups_size", ctypes.c_size_t),
        ("groups_list", _POINTER),
    )


class _Log(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("lxcpath", ctypes.c_char_p),
        ("file", ctypes.c_char_p),
        ("level", ctypes.c_char_p),
        ("prefix", ctypes.c_char_p),
        ("quiet", ctypes.c_bool),
    )


_BOOL_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_bool, _POINTER)
_INT_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER)
_STATE_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_char_p, _POINTER)
_GET_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int)
_SET_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_bool, _POINTER, ctypes.c_char_p, ctypes.c_char_p)
_LOAD_FUNCTION = ctypes.CFUNCTYPE(ctypes.c_bool, _POINTER, ctypes.c_char_p)
_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, _POINTER)
_ATTACH_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int,
    _POINTER,
    _CALLBACK,
    _POINTER,
    ctypes.POINTER(_AttachOptions),
    ctypes.POINTER(ctypes.c_int),
)
_CONSOLE_FUNCTION = ctypes.CFUNCTYPE(
    ctypes.c_int, _POINTER, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int)
)
_LONGEST_VALUE = 4096
_CONSOLE = 0
"""The number of `/dev/console` among a container's ttys."""


class LiblxcError(Exception):
    """A call of liblxc failed; the reason is in its log."""


class Liblxc:
    """The loaded library. Raises OSError if it is not installed."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("liblxc.so.1", use_errno=True)
        self._lib.lxc_container_new.restype = ctypes.POINTER(_Container)
        self._lib.lxc_container_new.argtypes = (ctypes.c_char_p, ctypes.c_char_p)
        self._lib.lxc_log_init.argtypes = (ctypes.POINTER(_Log),)

    def log_to(self, fd: int) -> None:
        """Have liblxc write errors to a file; may be called once per process."""
        log = _Log(b"utsuwa", None, f"/proc/self/fd/{fd}".encode(), b"ERROR", b"utsuwa", True)
        if self._lib.lxc_log_init(ctypes.byref(log)):
            raise LiblxcError("liblxc's log could not be opened")

    def container(self, name: str, lxcpath: str) -> Container:
        pointer = self._lib.lxc_container_new(os.fsencode(name), os.fsencode(lxcpath))
        if not pointer:
            raise LiblxcError(f"liblxc cannot create a handle for container {name!r}")
        return Container(pointer)


class Container:
    """A container handle, valid for the lifetime of the worker, which serves one request."""

    def __init__(self, pointer: ctypes._Pointer[_Container]) -> None:
        self._pointer = ctypes.cast(pointer, _POINTER)
        self._members = pointer.contents

    def state(self) -> str:
        """`STOPPED`, `RUNNING`, `FROZEN` etc."""
        found = _STATE_FUNCTION(self._members.state)(self._pointer)
        return found.decode() if found else "STOPPED"

    def init_pid(self) -> int | None:
        pid = int(_INT_FUNCTION(self._members.init_pid)(self._pointer))
        return pid if pid > 0 else None

    def devpts_fd(self) -> int | None:
        """Return a descriptor of the container's devpts mount; None without support in kernel and liblxc."""
        fd = int(_INT_FUNCTION(self._members.devpts_fd)(self._pointer))
        return fd if fd >= 0 else None

    def console(self) -> tuple[int, int]:
        """Return a connection that reserves the container's console, and the pty's master."""
        number, master = ctypes.c_int(_CONSOLE), ctypes.c_int(-1)
        call = _CONSOLE_FUNCTION(self._members.console_getfd)
        held = int(call(self._pointer, ctypes.byref(number), ctypes.byref(master)))
        if held < 0 or master.value < 0:
            raise LiblxcError(
                "the console of the container is not available: another program may be using it"
            )
        return held, master.value

    def load_config(self, path: str) -> None:
        if not _LOAD_FUNCTION(self._members.load_config)(self._pointer, os.fsencode(path)):
            raise LiblxcError("the configuration is not valid")

    def set_config(self, key: str, value: str) -> None:
        if not _SET_FUNCTION(self._members.set_config_item)(self._pointer, key.encode(), value.encode()):
            raise LiblxcError(f"{key} cannot be set")

    def config(self, key: str) -> str:
        """Return a loaded config value as normalized by liblxc: signals are numbers, 0 for none."""
        value = ctypes.create_string_buffer(_LONGEST_VALUE)
        get = _GET_FUNCTION(self._members.get_config_item)
        if get(self._pointer, key.encode(), value, _LONGEST_VALUE) < 0:
            raise LiblxcError(f"{key} cannot be read")
        return value.value.decode()

    def set_cgroup(self, file: str, value: str) -> None:
        """Write to a file of a controller of the running container's cgroup."""
        if not _SET_FUNCTION(self._members.set_cgroup_item)(self._pointer, file.encode(), value.encode()):
            raise LiblxcError(f"{value!r} cannot be written to {file} of its cgroup")

    def freeze(self) -> None:
        if not _BOOL_FUNCTION(self._members.freeze)(self._pointer):
            raise LiblxcError("the container cannot be frozen")

    def unfreeze(self) -> None:
        if not _BOOL_FUNCTION(self._members.unfreeze)(self._pointer):
            raise LiblxcError("the container cannot be unfrozen")

    def attach(
        self, run: Callable[[], int], *, uid: int, gid: int, env: list[bytes], stdio: tuple[int, int, int]
    ) -> int:
        """Call `run` in a new child process inside the container; return its pid.

        `uid` and `gid` are ids in the container; supplementary groups are dropped. `env` (`NAME=value`)
        becomes the complete environment, with `container=lxc` added. `run` gets `stdio` as 0, 1 and 2, and
        its result is the exit code.
        """
        callback = _CALLBACK(lambda _payload: run())
        strings = (ctypes.c_char_p * (len(env) + 1))(*env, None)
        options = _AttachOptions(
            attach_flags=_ATTACH_DEFAULT,
            namespaces=_ALL_NAMESPACES,
            personality=_DETECT_PERSONALITY,
            uid=uid,
            gid=gid,
            env_policy=_CLEAR_ENVIRONMENT,
            extra_env_vars=ctypes.cast(strings, _STRINGS),
            stdin_fd=stdio[0],
            stdout_fd=stdio[1],
            stderr_fd=stdio[2],
            log_fd=_NO_LOG,
        )
        pid = ctypes.c_int(-1)
        attach = _ATTACH_FUNCTION(self._members.attach)
        if attach(self._pointer, callback, None, ctypes.byref(options), ctypes.byref(pid)) or pid.value <= 0:
            raise LiblxcError("the command cannot be run inside the container")
        return pid.value
