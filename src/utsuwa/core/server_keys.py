"""The config keys of the server. Names are LXD's; what Incus added later stands under Incus' name."""

from __future__ import annotations

from collections.abc import Mapping

from utsuwa.core import key_checks as checks
from utsuwa.core.config_keys import ConfigKey, KeyTable, KeyType, Validator, integer_between, one_of


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
    """A key that is checked and stored, and takes effect in a later version."""
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


_CORE = (
    ConfigKey(
        "core.https_address",
        help="Address and port of the API over HTTPS; without one it is on the unix socket only.",
        validate=checks.listen_address,
    ),
    ConfigKey(
        "core.trust_password",
        help="Password by which clients get into the trust store on their own.",
        secret=True,
    ),
    ConfigKey(
        "core.shutdown_timeout",
        "integer",
        "5",
        help="Minutes that a shutdown of the daemon waits for running operations.",
        validate=checks.at_least(0),
    ),
    _later(
        "core.shutdown_action",
        default="shutdown",
        help="What a shutdown of the server does.",
        validate=one_of("shutdown", "evacuate"),
    ),
    _later("core.bgp_address", help="Address of the BGP server.", validate=checks.listen_address),
    _later(
        "core.bgp_asn",
        "integer",
        help="Number of the autonomous system that BGP announces.",
        validate=integer_between(1, 4294967294),
    ),
    _later("core.bgp_routerid", help="Name of this server for its BGP peers."),
    _later("core.debug_address", help="Address of the debug server.", validate=checks.listen_address),
    _later("core.dns_address", help="Address of the DNS server.", validate=checks.listen_address),
    _later("core.metrics_address", help="Address of the metrics server.", validate=checks.listen_address),
    _later(
        "core.metrics_authentication",
        "bool",
        default="true",
        help="Whether the metrics server asks for a trusted certificate.",
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
        help="Let the web pages of core.https_allowed_origin use their reader's client certificate.",
    ),
    ConfigKey(
        "core.https_allowed_headers",
        help="Request headers that these pages may send, as Content-Type, If-Match.",
        validate=checks.tokens,
    ),
    ConfigKey(
        "core.https_allowed_methods",
        help="Methods that these pages may use, as GET, POST, PUT, PATCH, DELETE.",
        validate=checks.tokens,
    ),
    ConfigKey(
        "core.https_allowed_origin",
        help="Web pages of another site that may use the API: its origin, or * for every site.",
        validate=checks.allowed_origin,
    ),
    _later("core.https_trusted_proxy", "list", help="Proxies that name the real address of a client."),
    _later("core.proxy_http", help="Proxy for requests by HTTP."),
    _later("core.proxy_https", help="Proxy for requests by HTTPS."),
    _later("core.proxy_ignore_hosts", "list", help="Hosts that are reached without a proxy."),
    _later(
        "core.remote_token_expiry",
        help="How long a token for a new client is good, as 1H or 3d.",
        validate=checks.expiry,
    ),
    _later("core.syslog_socket", "bool", default="false", help="Take log lines of OVN on a socket."),
    _later(
        "core.trust_ca_certificates",
        "bool",
        default="false",
        help="Trust every certificate that the server's CA has signed.",
    ),
)

_CLUSTER = (
    _later("cluster.https_address", help="Address for other servers.", validate=checks.listen_address),
    _later(
        "cluster.healing_threshold",
        "integer",
        default="0",
        help="Seconds after which a lost server's instances are started elsewhere; 0 for never.",
        validate=checks.at_least(0),
    ),
    _later(
        "cluster.images_minimal_replica",
        "integer",
        default="3",
        help="How many servers keep a copy of an image; -1 for all.",
        validate=checks.at_least(-1),
    ),
    _later(
        "cluster.join_token_expiry",
        default="3H",
        help="How long a token for a new server is good.",
        validate=checks.expiry,
    ),
    _later(
        "cluster.max_standby",
        "integer",
        default="2",
        help="Servers that stand by for the database.",
        validate=integer_between(0, 5),
    ),
    _later(
        "cluster.max_voters",
        "integer",
        default="3",
        help="Servers that the database lies on.",
        validate=checks.at_least(1),
    ),
    _later(
        "cluster.offline_threshold",
        "integer",
        default="20",
        help="Seconds of silence after which a server counts as lost.",
        validate=checks.at_least(10),
    ),
    _later(
        "cluster.rebalance.batch",
        "integer",
        default="1",
        help="Instances that are moved in one go.",
        validate=checks.at_least(1),
    ),
    _later(
        "cluster.rebalance.cooldown",
        default="6H",
        help="How long a moved instance stays.",
        validate=checks.expiry,
    ),
    _later(
        "cluster.rebalance.interval",
        "integer",
        default="0",
        help="Minutes between looks at the load; 0 for never.",
        validate=checks.at_least(0),
    ),
    _later(
        "cluster.rebalance.threshold",
        "integer",
        default="20",
        help="Percentage by which loads must differ before anything moves.",
        validate=integer_between(10, 100),
    ),
)

_IMAGES = (
    _later(
        "images.auto_update_cached", "bool", default="true", help="Keep images that were fetched up to date."
    ),
    _later(
        "images.auto_update_interval",
        "integer",
        default="6",
        help="Hours between looks for newer images; 0 for never.",
        validate=checks.at_least(0),
    ),
    _later(
        "images.compression_algorithm",
        default="gzip",
        help="How images that are made here are compressed.",
        validate=checks.compression,
    ),
    _later("images.default_architecture", help="Architecture where nothing says which."),
    _later(
        "images.remote_cache_expiry",
        "integer",
        default="10",
        help="Days after which a fetched image that nobody used goes.",
        validate=checks.at_least(0),
    ),
)

_ACME = (
    _later("acme.agree_tos", "bool", default="false", help="Agree to the terms of the certificate service."),
    _later(
        "acme.ca_url",
        default="https://acme-v02.api.letsencrypt.org/directory",
        help="The certificate service.",
    ),
    _later(
        "acme.challenge",
        default="HTTP-01",
        help="How the server shows that a domain is its own.",
        validate=one_of("HTTP-01", "DNS-01"),
    ),
    _later("acme.domain", help="Domain of the server's certificate."),
    _later("acme.email", help="Whom the certificate service writes to."),
    _later(
        "acme.http.port", default=":80", help="Where HTTP-01 is answered.", validate=checks.listen_address
    ),
    _later("acme.provider", help="DNS provider for DNS-01."),
    _later("acme.provider.environment", help="Variables that the DNS provider needs.", secret=True),
    _later("acme.provider.resolvers", "list", help="DNS servers that are asked for the answer."),
)

_LOGGING = (
    _later("logging.*.lifecycle.projects", "list", help="Projects whose events go there; none for all."),
    _later("logging.*.lifecycle.types", "list", help="Kinds of events that go there; none for all."),
    _later("logging.*.logging.level", default="info", help="Lowest level of log lines that go there."),
    _later("logging.*.target.address", help="Where the log is sent."),
    _later("logging.*.target.ca_cert", multiline=True, help="Certificate of the target's CA."),
    _later("logging.*.target.facility", help="Facility of syslog lines."),
    _later("logging.*.target.instance", help="What this server calls itself there."),
    _later("logging.*.target.labels", "list", help="Fields that become labels."),
    _later("logging.*.target.password", help="Password at the target.", secret=True),
    _later(
        "logging.*.target.retry",
        "integer",
        default="3",
        help="How often sending is tried again.",
        validate=checks.at_least(0),
    ),
    _later("logging.*.target.type", help="Kind of the target.", validate=one_of("loki", "syslog", "webhook")),
    _later("logging.*.target.username", help="Name at the target."),
    _later(
        "logging.*.types",
        "list",
        default="lifecycle,logging",
        help="What goes there.",
        validate=checks.list_of("lifecycle", "logging", "network-acl"),
    ),
)

_LOKI = (
    _later("loki.api.ca_cert", multiline=True, help="Certificate of the Loki server's CA."),
    _later("loki.api.url", help="The Loki server."),
    _later("loki.auth.password", help="Password at the Loki server.", secret=True),
    _later("loki.auth.username", help="Name at the Loki server."),
    _later("loki.instance", help="What this server calls itself in Loki."),
    _later("loki.labels", "list", help="Fields that become labels."),
    _later("loki.loglevel", default="info", help="Lowest level of log lines that are sent."),
    _later(
        "loki.types",
        "list",
        default="lifecycle,logging",
        help="What is sent.",
        validate=checks.list_of("lifecycle", "logging", "network-acl"),
    ),
)

_ACCESS = (
    _later("oidc.audience", help="Audience that tokens must name."),
    _later("oidc.claim", help="Claim that holds the user's name."),
    _later("oidc.client.id", help="This server's id at the OpenID provider."),
    _later("oidc.issuer", help="The OpenID provider."),
    _later("oidc.scopes", "list", help="Scopes that are asked for."),
    _later("openfga.api.token", help="Token for the OpenFGA server.", secret=True),
    _later("openfga.api.url", help="The OpenFGA server."),
    _later("openfga.store.id", help="The store of permissions there."),
    _later("authorization.scriptlet", multiline=True, help="A script that decides what callers may do."),
)

_MISCELLANEOUS = (
    _later(
        "backups.compression_algorithm",
        default="gzip",
        help="How backups are compressed.",
        validate=checks.compression,
    ),
    _later("instances.lxcfs.per_instance", "bool", default="false", help="Run one lxcfs for each instance."),
    _later(
        "instances.nic.host_name",
        default="random",
        help="How the host's interfaces of instances are named.",
        validate=one_of("random", "mac"),
    ),
    _later(
        "instances.placement.scriptlet",
        multiline=True,
        help="A script that chooses servers for new instances.",
    ),
    _later("network.hwaddr_pattern", default="00:16:3e:xx:xx:xx", help="Pattern of new MAC addresses."),
    _later("network.ovn.ca_cert", multiline=True, help="Certificate of the OVN database's CA."),
    _later("network.ovn.client_cert", multiline=True, help="This server's certificate for OVN."),
    _later("network.ovn.client_key", multiline=True, help="This server's key for OVN.", secret=True),
    _later("network.ovn.integration_bridge", default="br-int", help="Bridge that OVN uses."),
    _later(
        "network.ovn.northbound_connection",
        default="unix:/run/ovn/ovnnb_db.sock",
        help="The OVN northbound database.",
    ),
    _later(
        "network.ovs.connection",
        default="unix:/run/openvswitch/db.sock",
        help="The database of Open vSwitch.",
    ),
    _later("storage.backups_volume", help="Volume (POOL/VOLUME) that backups are kept on."),
    _later("storage.images_volume", help="Volume (POOL/VOLUME) that images are kept on."),
    _later("storage.logs_volume", help="Volume (POOL/VOLUME) that logs are kept on."),
    _later("storage.linstor.ca_cert", multiline=True, help="Certificate of the LINSTOR controller's CA."),
    _later("storage.linstor.client_cert", multiline=True, help="This server's certificate for LINSTOR."),
    _later("storage.linstor.client_key", multiline=True, help="This server's key for LINSTOR.", secret=True),
    _later("storage.linstor.controller_connection", help="The LINSTOR controller."),
    _later("storage.linstor.satellite.name", help="This server's name in LINSTOR."),
)

_SERVICES = (
    _later("candid.api.key", help="Key of the Candid server."),
    _later("candid.api.url", help="The Candid server."),
    _later("candid.domains", "list", help="Domains of Candid whose users may come in."),
    _later("candid.expiry", "integer", default="3600", help="Seconds after which Candid is asked again."),
    _later("maas.api.key", help="Key of the MAAS server.", secret=True),
    _later("maas.api.url", help="The MAAS server."),
    _later("maas.machine", help="This server's name in MAAS."),
    _later("rbac.agent.private_key", help="Private key of the RBAC agent.", secret=True),
    _later("rbac.agent.public_key", help="Public key of the RBAC agent."),
    _later("rbac.agent.url", help="The RBAC agent."),
    _later("rbac.agent.username", help="Name of the RBAC agent."),
    _later("rbac.api.expiry", "integer", help="Seconds after which RBAC is asked again."),
    _later("rbac.api.key", help="Key of the RBAC server.", secret=True),
    _later("rbac.api.url", help="The RBAC server."),
    _later("rbac.expiry", "integer", default="3600", help="Seconds after which RBAC is asked again."),
)
"""Services of LXD 5.0 that its successors have given up: known so that their settings carry over."""

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
"""Keys of one server where several form a cluster; the others are the same on all."""

SERVER_KEYS = KeyTable("the server", tuple(key for group in SERVER_KEY_GROUPS.values() for key in group))
