"""What there is to be entitled to, by LXD's names: routes and operations say what of it they need."""

from __future__ import annotations

from enum import Enum


class Entity(Enum):
    """A kind of object; those of `OF_SERVER` are in no project."""

    SERVER = "server"
    CERTIFICATE = "certificate"
    STORAGE_POOL = "storage_pool"
    PROJECT = "project"
    INSTANCE = "instance"
    IMAGE = "image"
    PROFILE = "profile"
    NETWORK = "network"
    STORAGE_VOLUME = "storage_volume"
    OPERATION = "operation"


OF_SERVER = frozenset((Entity.SERVER, Entity.CERTIFICATE, Entity.STORAGE_POOL))


class Entitlement(Enum):
    """A right on an object, or on the project that it is in."""

    CAN_VIEW = "can_view"
    CAN_EDIT = "can_edit"
    CAN_DELETE = "can_delete"
    CAN_CREATE = "can_create"
    CAN_UPDATE_STATE = "can_update_state"
    CAN_MANAGE_SNAPSHOTS = "can_manage_snapshots"
    CAN_EXEC = "can_exec"
    CAN_ACCESS_CONSOLE = "can_access_console"
    CAN_ACCESS_FILES = "can_access_files"
    CAN_CONNECT_SFTP = "can_connect_sftp"
