"""The API extensions that this server answers; clients decide by them what to ask for.

An extension stands here when every path and field that it names answers. Three are there although a
part of them answers 501 in this version, because clients refuse even to list without them:
`storage` (custom volumes), `projects` (changing them), `console` (attaching; its log is served).
`docs/extensions.md` says what each brings and what comes later.
"""

from __future__ import annotations

EXTENSIONS: tuple[str, ...] = (
    "container_host_shutdown_timeout",
    "container_stop_priority",
    "container_last_used_at",
    "etag",
    "patch",
    "container_cpu_time",
    "profile_usedby",
    "container_exec_recording",
    "certificate_update",
    "container_exec_signal_handling",
    "container_image_properties",
    "id_map",
    "storage",
    "image_create_aliases",
    "entity_description",
    "id_map_base",
    "storage_volatile_initial_source",
    "resources",
    "kernel_limits",
    "console",
    "operation_description",
    "event_lifecycle",
    "container_protection_delete",
    "container_full",
    "projects",
    "kernel_features",
    "id_map_current",
    "event_location",
    "lxc_features",
    "container_exec_user_group_cwd",
    "instances",
    "image_types",
    "images_expiry",
    "image_profiles",
    "api_filtering",
    "firewall_driver",
    "api_os",
    "usedby_consistency",
    "container_syscall_filtering_allow_deny_syntax",
    "instance_bulk_state_change",
    "server_instance_driver_operational",
    "server_supported_storage_drivers",
    "event_lifecycle_requestor_address",
    "linux_sysctl",
    "instance_all_projects",
    "instance_get_full",
    "event_project",
)
