"""Volatile keys: the state that is stored with an instance."""

from __future__ import annotations

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey
from utsuwa.core.instance_keys.records import for_vms

IMAGE_STATE = (
    ConfigKey("volatile.apply_template", help="Trigger of the templates to apply at the next start."),
    ConfigKey("volatile.base_image", help="Fingerprint of the image that the instance was created from."),
    ConfigKey(
        "volatile.cloud-init.instance-id",
        help="Instance id for cloud-init, which runs again when it changes.",
        validate=checks.is_uuid,
    ),
    ConfigKey("volatile.container.oci", "bool", "false", help="Whether this is an application container."),
)

HOST_STATE = (
    ConfigKey("volatile.cluster.group", help="Cluster group that the instance was placed in."),
    ConfigKey("volatile.cpu.nodes", help="NUMA nodes that were chosen."),
    ConfigKey("volatile.evacuate.origin", help="Server that the instance was evacuated from."),
    ConfigKey("volatile.idmap.base", "integer", help="First host id of the instance's id map."),
    ConfigKey("volatile.idmap.current", help="Id map of the running instance, as JSON."),
    ConfigKey("volatile.idmap.next", help="Id map of the next start, as JSON."),
    ConfigKey("volatile.last_state.boot_id", help="Boot id of the host when the instance last ran."),
    ConfigKey("volatile.last_state.change", help="Devices that are currently being changed, as JSON."),
    ConfigKey("volatile.last_state.idmap", help="Id map of the owners of the files on disk, as JSON."),
    ConfigKey("volatile.last_state.power", help="Last power state seen by the daemon."),
    ConfigKey("volatile.last_state.ready", help="Whether the instance has reported that it is ready."),
    ConfigKey("volatile.rebalance.last_move", "integer", help="When the instance was last moved."),
    ConfigKey("volatile.uuid", help="UUID of the instance.", validate=checks.is_uuid),
    ConfigKey(
        "volatile.uuid.generation",
        help="Generation id, which changes when the instance is rolled back.",
        validate=checks.is_uuid,
    ),
)

DEVICE_STATE = tuple(
    ConfigKey(f"volatile.*.{name}", help=help)
    for name, help in (
        ("apply_quota", "Disk quota to set at the next start."),
        ("ceph_rbd", "RBD device on the host."),
        ("host_name", "Interface on the host."),
        ("hwaddr", "MAC address of the interface."),
        ("io.bus", "Bus of the disk."),
        ("last_state.created", "Whether the host's interface was created for the instance."),
        ("last_state.hwaddr", "MAC address that the host's interface had."),
        ("last_state.ip_addresses", "IP addresses of the last start."),
        ("last_state.mtu", "MTU that the host's interface had."),
        ("last_state.pci.driver", "Driver that the PCI device had."),
        ("last_state.pci.parent", "PCI device of the host."),
        ("last_state.pci.slot.name", "Slot of the PCI device."),
        ("last_state.usb.bus", "Bus of the USB device."),
        ("last_state.usb.device", "Number of the USB device."),
        ("last_state.vdpa.name", "Name of the vDPA device."),
        ("last_state.vf.hwaddr", "MAC address that the virtual function had."),
        ("last_state.vf.id", "Number of the virtual function."),
        ("last_state.vf.parent", "Interface of the virtual function."),
        ("last_state.vf.spoofcheck", "Spoof check that the virtual function had."),
        ("last_state.vf.trusted", "Trust that the virtual function had."),
        ("last_state.vf.vlan", "VLAN that the virtual function had."),
        ("mig.uuid", "UUID of the MIG device."),
        ("name", "Interface inside the instance."),
        ("vgpu.uuid", "UUID of the virtual GPU."),
    )
)

VM_STATE = (
    for_vms("volatile.apply_nvram", "bool", help="Whether the next start recreates the firmware's NVRAM."),
    for_vms("volatile.vm.boot_state", help="Properties to preserve during migration, as JSON."),
    for_vms("volatile.vm.needs_reset", "bool", help="Whether the next reboot must be a full restart."),
    for_vms("volatile.vm.rtc_adjustment", "integer", help="Adjustment of the guest's clock."),
    for_vms("volatile.vm.rtc_offset", "integer", help="Offset of the guest's clock."),
    for_vms("volatile.vsock_id", help="The guest's vsock address."),
)


VOLATILE = IMAGE_STATE + HOST_STATE + DEVICE_STATE + VM_STATE
