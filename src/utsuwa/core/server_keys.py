"""The config keys of the server. Names are LXD's; keys that Incus added later have Incus' names."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, KeyTable, KeyType, Validator, integer_between, one_of
from utsuwa.core.errors import InvalidConfig


def _later(
    name: str,
    type: KeyType = "string",
    *,
    default: str = "",
    help: str,
    validate: Validator | None = None,
    secret: bool = False,
    multiline: bool = False,
) -> ConfigKey:
    """Return a key that is validated and stored, but not yet in effect."""
    return ConfigKey(
        name,
        type,
        default,
        help=help,
        validate=validate,
        secret=secret,
        multiline=multiline,
        in_force=False,
    )


def _shutdown_action(value: str) -> None:
    if value == "evacuate":
        raise InvalidConfig(
            "evacuate is not possible: only servers of a cluster can move instances to others"
        )
    one_of("shutdown")(value)


_CORE = (
    ConfigKey(
        "core.https_address",
        help="Address and port of the API over HTTPS; if unset, the API is on the unix socket only.",
        validate=checks.listen_address,
    ),
    ConfigKey(
        "core.trust_password",
        help="Password with which clients can add themselves to the trust store.",
        secret=True,
    ),
    ConfigKey(
        "core.shutdown_timeout",
        "integer",
        "5",
        help="Minutes to wait for running operations when the daemon shuts down.",
        validate=checks.at_least(0),
    ),
    ConfigKey(
        "core.shutdown_action",
        default="shutdown",
        help="What to do when the server shuts down.",
        validate=_shutdown_action,
    ),
    _later("core.bgp_address", help="Address of the BGP server.", validate=checks.listen_address),
    _later(
        "core.bgp_asn",
        "integer",
        help="Autonomous system number for BGP.",
        validate=integer_between(1, 4294967294),
    ),
    _later("core.bgp_routerid", help="BGP router id of this server."),
    ConfigKey(
        "core.debug_address",
        help="Address and port where it is shown what the daemon does; the default port is 8444.",
        validate=checks.listen_address,
    ),
    _later("core.dns_address", help="Address of the DNS server.", validate=checks.listen_address),
    ConfigKey(
        "core.metrics_address",
        help="Address and port where metrics alone are served over HTTPS; the default port is 9100.",
        validate=checks.listen_address,
    ),
    ConfigKey(
        "core.metrics_authentication",
        "bool",
        "true",
        help="Whether metrics require a trusted client or metrics certificate.",
    ),
    _later(
        "core.storage_buckets_address",
        help="Address of the object storage server.",
        validate=checks.listen_address,
    ),
    ConfigKey(
        "core.https_allowed_credentials",
        "bool",
        "false",
        help="Let pages of core.https_allowed_origin use the browser's client certificate.",
    ),
    ConfigKey(
        "core.https_allowed_headers",
        help="Request headers that these pages may send, such as Content-Type, If-Match.",
        validate=checks.tokens,
    ),
    ConfigKey(
        "core.https_allowed_methods",
        help="Methods that these pages may use, such as GET, POST, PUT, PATCH, DELETE.",
        validate=checks.tokens,
    ),
    ConfigKey(
        "core.https_allowed_origin",
        help="Origin of web pages of another site that may use the API, or * for any.",
        validate=checks.allowed_origin,
    ),
    ConfigKey(
        "core.https_trusted_proxy",
        "list",
        help="Addresses of the proxies that tell the addresses of their clients with the PROXY protocol.",
        validate=checks.ip_addresses,
    ),
    ConfigKey("core.proxy_http", help="Proxy for HTTP requests.", validate=checks.proxy),
    ConfigKey("core.proxy_https", help="Proxy for HTTPS requests.", validate=checks.proxy),
    ConfigKey("core.proxy_ignore_hosts", "list", help="Hosts to reach without a proxy."),
    ConfigKey(
        "core.remote_token_expiry",
        help="Lifetime of a token for a new client, such as 1H or 3d; if unset, tokens do not expire.",
        validate=checks.expiry,
    ),
    _later("core.syslog_socket", "bool", default="false", help="Receive OVN's log lines on a socket."),
    ConfigKey(
        "core.trust_ca_certificates",
        "bool",
        "false",
        help="Trust every client certificate of the authority in server.ca, also without adding it.",
    ),
)

_CLUSTER = (
    _later("cluster.https_address", help="Address for cluster traffic.", validate=checks.listen_address),
    _later(
        "cluster.healing_threshold",
        "integer",
        default="0",
        help="Seconds after which the instances of an offline member are started elsewhere; 0 for never.",
        validate=checks.at_least(0),
    ),
    _later(
        "cluster.images_minimal_replica",
        "integer",
        default="3",
        help="Number of members that keep a copy of an image; -1 for all.",
        validate=checks.at_least(-1),
    ),
    _later(
        "cluster.join_token_expiry",
        default="3H",
        help="Lifetime of a join token for a new member.",
        validate=checks.expiry,
    ),
    _later(
        "cluster.max_standby",
        "integer",
        default="2",
        help="Number of stand-by members of the database.",
        validate=integer_between(0, 5),
    ),
    _later(
        "cluster.max_voters",
        "integer",
        default="3",
        help="Number of voting members of the database.",
        validate=checks.at_least(1),
    ),
    _later(
        "cluster.offline_threshold",
        "integer",
        default="20",
        help="Seconds without a response after which a member counts as offline.",
        validate=checks.at_least(10),
    ),
    _later(
        "cluster.rebalance.batch",
        "integer",
        default="1",
        help="Maximum number of instances to move at a time.",
        validate=checks.at_least(1),
    ),
    _later(
        "cluster.rebalance.cooldown",
        default="6H",
        help="Time before a moved instance may be moved again.",
        validate=checks.expiry,
    ),
    _later(
        "cluster.rebalance.interval",
        "integer",
        default="0",
        help="Minutes between checks of the load; 0 for never.",
        validate=checks.at_least(0),
    ),
    _later(
        "cluster.rebalance.threshold",
        "integer",
        default="20",
        help="Difference of loads in percent at which instances are moved.",
        validate=integer_between(10, 100),
    ),
)

_IMAGES = (
    ConfigKey("images.auto_update_cached", "bool", "true", help="Keep cached images up to date."),
    ConfigKey(
        "images.auto_update_interval",
        "integer",
        "6",
        help="Hours between checks for newer images; 0 for never.",
        validate=checks.at_least(0),
    ),
    ConfigKey(
        "images.compression_algorithm",
        default="gzip",
        help="Compression of published images, such as zstd -3.",
        validate=checks.compression,
    ),
    ConfigKey(
        "images.default_architecture",
        help="Architecture of images that are preferred, if the host can run it.",
        validate=checks.architecture,
    ),
    ConfigKey(
        "images.remote_cache_expiry",
        "integer",
        "10",
        help="Days after which an unused cached image is removed.",
        validate=checks.at_least(0),
    ),
)

_ACME = (
    _later(
        "acme.agree_tos",
        "bool",
        default="false",
        help="Agree to the terms of service of the certificate authority.",
    ),
    _later(
        "acme.ca_url",
        default="https://acme-v02.api.letsencrypt.org/directory",
        help="URL of the certificate authority's directory.",
    ),
    _later(
        "acme.challenge",
        default="HTTP-01",
        help="Type of the ACME challenge.",
        validate=one_of("HTTP-01", "DNS-01"),
    ),
    _later("acme.domain", help="Domain of the server's certificate."),
    _later("acme.email", help="E-mail address of the ACME account."),
    _later(
        "acme.http.port", default=":80", help="Listen address for HTTP-01.", validate=checks.listen_address
    ),
    _later("acme.provider", help="DNS provider for DNS-01."),
    _later("acme.provider.environment", help="Environment variables for the DNS provider.", secret=True),
    _later("acme.provider.resolvers", "list", help="DNS resolvers for DNS-01."),
)

_LOGGING = (
    _later("logging.*.lifecycle.projects", "list", help="Projects whose events are sent; empty for all."),
    _later("logging.*.lifecycle.types", "list", help="Types of events to send; empty for all."),
    _later("logging.*.logging.level", default="info", help="Lowest level of log lines to send."),
    _later("logging.*.target.address", help="Address of the target."),
    _later("logging.*.target.ca_cert", multiline=True, help="Certificate of the target's CA."),
    _later("logging.*.target.facility", help="Facility of syslog lines."),
    _later("logging.*.target.instance", help="Name of this server at the target."),
    _later("logging.*.target.labels", "list", help="Fields that become labels."),
    _later("logging.*.target.password", help="Password at the target.", secret=True),
    _later(
        "logging.*.target.retry",
        "integer",
        default="3",
        help="Number of retries.",
        validate=checks.at_least(0),
    ),
    _later("logging.*.target.type", help="Type of the target.", validate=one_of("loki", "syslog", "webhook")),
    _later("logging.*.target.username", help="User name at the target."),
    _later(
        "logging.*.types",
        "list",
        default="lifecycle,logging",
        help="Types of events to send.",
        validate=checks.list_of("lifecycle", "logging", "network-acl"),
    ),
)

_LOKI = (
    _later("loki.api.ca_cert", multiline=True, help="Certificate of the Loki server's CA."),
    _later("loki.api.url", help="URL of the Loki server."),
    _later("loki.auth.password", help="Password at the Loki server.", secret=True),
    _later("loki.auth.username", help="User name at the Loki server."),
    _later("loki.instance", help="Name of this server in Loki."),
    _later("loki.labels", "list", help="Fields that become labels."),
    _later("loki.loglevel", default="info", help="Lowest level of log lines to send."),
    _later(
        "loki.types",
        "list",
        default="lifecycle,logging",
        help="Types of events to send to Loki.",
        validate=checks.list_of("lifecycle", "logging", "network-acl"),
    ),
)

_ACCESS = (
    _later("oidc.audience", help="Expected audience of tokens."),
    _later("oidc.claim", help="Claim that contains the user name."),
    _later("oidc.client.id", help="OpenID Connect client id."),
    _later("oidc.issuer", help="URL of the OpenID Connect provider."),
    _later("oidc.scopes", "list", help="Scopes to request."),
    _later("openfga.api.token", help="Token for the OpenFGA server.", secret=True),
    _later("openfga.api.url", help="URL of the OpenFGA server."),
    _later("openfga.store.id", help="Id of the OpenFGA permission store."),
    _later("authorization.scriptlet", multiline=True, help="A script that decides what callers may do."),
)

_MISCELLANEOUS = (
    _later(
        "backups.compression_algorithm",
        default="gzip",
        help="Compression of backups.",
        validate=checks.compression,
    ),
    _later("instances.lxcfs.per_instance", "bool", default="false", help="Run one lxcfs for each instance."),
    ConfigKey(
        "instances.nic.host_name",
        default="random",
        help="Names of the instances' interfaces on the host: random, or lxd and the end of the MAC address.",
        validate=one_of("random", "mac"),
    ),
    _later(
        "instances.placement.scriptlet",
        multiline=True,
        help="A script that chooses the member for new instances.",
    ),
    ConfigKey(
        "network.hwaddr_pattern",
        default="00:16:3e:xx:xx:xx",
        help="Pattern of the MAC addresses of new interfaces, with an x for each random digit.",
        validate=checks.hwaddr_pattern,
    ),
    _later("network.ovn.ca_cert", multiline=True, help="Certificate of the OVN database's CA."),
    _later("network.ovn.client_cert", multiline=True, help="This server's certificate for OVN."),
    _later("network.ovn.client_key", multiline=True, help="This server's key for OVN.", secret=True),
    _later("network.ovn.integration_bridge", default="br-int", help="Integration bridge of OVN."),
    _later(
        "network.ovn.northbound_connection",
        default="unix:/run/ovn/ovnnb_db.sock",
        help="Connection to the OVN northbound database.",
    ),
    _later(
        "network.ovs.connection",
        default="unix:/run/openvswitch/db.sock",
        help="Connection to the Open vSwitch database.",
    ),
    ConfigKey(
        "storage.backups_volume",
        help="Custom volume (POOL/VOLUME) that holds the backups, in place of the state directory.",
        validate=checks.pool_volume,
    ),
    ConfigKey(
        "storage.images_volume",
        help="Custom volume (POOL/VOLUME) that holds the images' files, in place of the state directory.",
        validate=checks.pool_volume,
    ),
    _later("storage.logs_volume", help="Volume (POOL/VOLUME) for logs."),
    _later("storage.linstor.ca_cert", multiline=True, help="Certificate of the LINSTOR controller's CA."),
    _later("storage.linstor.client_cert", multiline=True, help="This server's certificate for LINSTOR."),
    _later("storage.linstor.client_key", multiline=True, help="This server's key for LINSTOR.", secret=True),
    _later("storage.linstor.controller_connection", help="Connection to the LINSTOR controller."),
    _later("storage.linstor.satellite.name", help="This server's name in LINSTOR."),
)

_SERVICES = (
    _later("candid.api.key", help="Key of the Candid server."),
    _later("candid.api.url", help="URL of the Candid server."),
    _later("candid.domains", "list", help="Allowed Candid domains."),
    _later("candid.expiry", "integer", default="3600", help="Expiry of Candid's answers, in seconds."),
    _later("maas.api.key", help="Key of the MAAS server.", secret=True),
    _later("maas.api.url", help="URL of the MAAS server."),
    _later("maas.machine", help="This server's name in MAAS."),
    _later("rbac.agent.private_key", help="Private key of the RBAC agent.", secret=True),
    _later("rbac.agent.public_key", help="Public key of the RBAC agent."),
    _later("rbac.agent.url", help="URL of the RBAC agent."),
    _later("rbac.agent.username", help="User name of the RBAC agent."),
    _later("rbac.api.expiry", "integer", help="Expiry of RBAC's answers, in seconds."),
    _later("rbac.api.key", help="Key of the RBAC server.", secret=True),
    _later("rbac.api.url", help="URL of the RBAC server."),
    _later("rbac.expiry", "integer", default="3600", help="Expiry of RBAC's answers, in seconds."),
)
"""Services of LXD 5.0 that its successors dropped: accepted so that existing settings can be kept."""

SERVER_KEY_GROUPS: Mapping[str, tuple[ConfigKey, ...]] = {
    "core": _CORE,
    "cluster": _CLUSTER,
    "images": _IMAGES,
    "acme": _ACME,
    "logging": _LOGGING,
    "loki": _LOKI,
    "access": _ACCESS,
    "miscellaneous": _MISCELLANEOUS,
    "services": _SERVICES,
}

LOCAL_KEYS = frozenset(
    (
        "cluster.https_address",
        "core.bgp_address",
        "core.bgp_routerid",
        "core.debug_address",
        "core.dns_address",
        "core.https_address",
        "core.metrics_address",
        "core.storage_buckets_address",
        "core.syslog_socket",
        "storage.backups_volume",
        "storage.images_volume",
        "storage.logs_volume",
    )
)
"""Keys that are set per member; the others are the same on all members."""

SERVER_KEYS = KeyTable("the server", tuple(key for group in SERVER_KEY_GROUPS.values() for key in group))
