"""The properties of images that have a meaning; an image may have any others."""

from __future__ import annotations

from utsuwa.core.config_keys import ConfigKey

IMAGE_PROPERTIES = (
    ConfigKey("description", help="Shown in lists of images."),
    ConfigKey("os", help="The distribution, such as `Debian`."),
    ConfigKey("release", help="The distribution's release, such as `bookworm`."),
    ConfigKey(
        "variant",
        default="default",
        help="What distinguishes images of the same release, such as `cloud`.",
    ),
    ConfigKey("architecture", help="The architecture as the image's author names it, such as `amd64`."),
    ConfigKey("serial", help="When the image was built, such as `20260115_0512`; the latest is the newest."),
    ConfigKey(
        "requirements.*",
        help="What the author says that the image needs, such as `nesting` or `privileged`.",
        in_force=False,
    ),
)
