"""The settings, a record for each table of the file, each key with its default.

What a key means is in `bockd.example.toml`, beside the same default; a test holds both together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from bockd.config.address import Address, keeps_secrets
from bockd.config.cache import CacheSettings
from bockd.config.rbd import RbdSettings
from bockd.config.schema import Section, key, named, section
from bockd.config.trash import TrashSettings
from bockd.config.values import (
    choice,
    integer,
    read_flag,
    read_host_url,
    read_listen,
    read_names,
    read_path,
    read_percents,
    read_text,
    read_url,
    word,
)
from bockd.config.writeback import WriteBackSettings
from bockd.errors import InvalidRequestError
from bockd.model import (
    ClientCertificates,
    PoolDriver,
    Server,
    ServerKind,
    TlsMode,
    is_server_id,
)
from bockd.validation import MAX_IO_RATE, check_server_record

DEFAULT_NBD_LISTEN = Address("127.0.0.1", 10809)
"""10809 is NBD's registered port; loopback, because NBD without TLS trusts its network."""

DEFAULT_API_LISTEN = Address("127.0.0.1", 8776)
"""8776 is the port OpenStack clients expect of block storage."""

DEFAULT_DATA_DIR = Path("/var/lib/bockd")
"""Root's; another user's follows from the environment (bockd.config.load)."""

LOG_LEVELS = ("debug", "info", "warning", "error")

DAY_SECONDS = 24 * 3600

MAX_TOKEN_SECONDS = 366 * DAY_SECONDS
"""A year: a token is a password that was written into a script."""

UNLIMITED = -1
MAX_QUOTA = 1 << 53
"""Beyond this JSON numbers lose their last digits in some clients."""

read_quota = integer(UNLIMITED, MAX_QUOTA)

read_io_limit = integer(0, MAX_IO_RATE)


class LogFormat(StrEnum):
    """How a line of the log looks."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True, slots=True)
class LogSettings(Section):
    """`[log]`: how the log is written."""

    format: LogFormat = key(LogFormat.TEXT, word(LogFormat))


@dataclass(frozen=True, slots=True)
class TlsSettings(Section):
    """`[tls]`: the daemon's certificate, for all listeners that use TLS."""

    certificate_file: Path | None = key(None, read_path)
    key_file: Path | None = key(None, read_path)
    client_ca_file: Path | None = key(None, read_path)

    def problems(self) -> Iterator[tuple[str, str]]:
        if (self.certificate_file is None) != (self.key_file is None):
            given, missing = "certificate_file", "key_file"
            if self.certificate_file is None:
                given, missing = missing, given
            yield given, f"tls.{missing} is needed too"


@dataclass(frozen=True, slots=True)
class NbdSettings(Section):
    """`[nbd]`: NBD over TCP."""

    listen: Address | None = key(DEFAULT_NBD_LISTEN, read_listen)
    """None: no TCP listener."""
    tls: TlsMode = key(TlsMode.OFF, word(TlsMode))
    """Over TCP; the Unix socket has none."""
    client_certificates: ClientCertificates = key(ClientCertificates.NONE, word(ClientCertificates))
    keepalive_seconds: int = key(900, integer(10, DAY_SECONDS))
    """A switch that restarts takes minutes."""
    tcp_user_timeout_seconds: int = key(0, integer(0, DAY_SECONDS))
    """0: the kernel's own limit, which spares clients that are alive and take no replies."""


@dataclass(frozen=True, slots=True)
class ApiSettings(Section):
    """`[api]`: the OpenStack block storage API."""

    listen: Address | None = key(DEFAULT_API_LISTEN, read_listen)
    tls: TlsMode = key(TlsMode.OFF, word(TlsMode, TlsMode.OFF, TlsMode.REQUIRE))
    """One port speaks http or https."""
    client_certificates: ClientCertificates = key(ClientCertificates.NONE, word(ClientCertificates))
    strict_servers: bool = key(False, read_flag)


@dataclass(frozen=True, slots=True)
class MetricsSettings(Section):
    """`[metrics]`: for Prometheus, over TCP."""

    listen: Address | None = key(None, read_listen)
    """None: only on the control API's socket."""
    tls: TlsMode = key(TlsMode.OFF, word(TlsMode, TlsMode.OFF, TlsMode.REQUIRE))
    client_certificates: ClientCertificates = key(ClientCertificates.NONE, word(ClientCertificates))
    exports: int = key(100, integer(0, 10_000))
    """With series of their own: up to 63 each (docs/metrics.md says what a scrape takes)."""


@dataclass(frozen=True, slots=True)
class DashboardSettings(Section):
    """`[dashboard]`: the operator's pages."""

    listen: Address | None = key(None, read_listen)
    """None: a listener on the loopback interface is opened when a link is asked for."""
    tls: TlsMode = key(TlsMode.OFF, word(TlsMode, TlsMode.OFF, TlsMode.REQUIRE))
    client_certificates: ClientCertificates = key(ClientCertificates.NONE, word(ClientCertificates))
    public_url: str | None = key(None, read_host_url)
    """None: what follows from `listen`."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.public_url is not None and not keeps_secrets(self.public_url):
            yield (
                "public_url",
                "must be https, unless browsers are on this machine: the session's cookie would be "
                "readable on its way",
            )
        if self.listen is None:
            return
        if self.tls is TlsMode.OFF and not self.listen.is_loopback:
            yield (
                "listen",
                'whoever listens could do all that the operator can: set tls = "require"',
            )
        if self.listen.is_unspecified and self.public_url is None:
            yield "listen", "is all addresses: public_url must say which one browsers use"


@dataclass(frozen=True, slots=True)
class FuseSettings(Section):
    """`[fuse]`: volumes and snapshots as files."""

    mount: Path | None = key(None, read_path)
    """None: no file view."""


@dataclass(frozen=True, slots=True)
class VmSettings(Section):
    """`[vm]`: volumes as disks of virtual machines."""

    reconnect_seconds: int = key(60, integer(0, DAY_SECONDS))
    """A restart takes seconds, or as long as it takes to sync what is dirty; a guest whose file
    system has met an I/O error may need a person."""


@dataclass(frozen=True, slots=True)
class ServerSettings(Section):
    """`[servers.NAME]`: what volumes are attached to."""

    kind: str | None = key(None, choice(tuple(ServerKind)))
    qmp: Path | None = key(None, read_path)
    tenant: str | None = key(None, read_text)
    """None: all have it."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.kind is None:
            yield "kind", f"is missing: {', '.join(ServerKind)}"
            return
        try:
            # Its name is looked at by who knows it.
            check_server_record(self.record("name"))
        except InvalidRequestError as error:
            yield "kind" if self.qmp is None else "qmp", str(error)

    def record(self, name: str) -> Server:
        """Return the server that this table describes."""
        assert self.kind is not None
        qmp = None if self.qmp is None else str(self.qmp)
        return Server(name, ServerKind(self.kind), qmp, self.tenant)


@dataclass(frozen=True, slots=True)
class PoolSettings(Section):
    """`[pool]`: what everything is kept in."""

    driver: PoolDriver = key(PoolDriver.LOCAL, word(PoolDriver))
    warn_percent: tuple[int, ...] = key((80, 90, 95), read_percents)
    index_map_gib: int = key(1024, integer(1, 16 * 1024))
    """Address space for the index (bockd.index.mapsize)."""


@dataclass(frozen=True, slots=True)
class ChecksumSettings(Section):
    """`[checksums]`: of what snapshots hold."""

    enabled: bool = key(True, read_flag)
    rate_mib: int = key(32, integer(1, 65536))
    """2 % of a core here (docs/checksums.md)."""
    interval_days: int = key(30, integer(1, 3650))
    """From the end of a pass to the next one."""


@dataclass(frozen=True, slots=True)
class IdentitySettings(Section):
    """`[identity]`: tokens that bockd issues itself."""

    token_seconds: int = key(DAY_SECONDS, integer(60, MAX_TOKEN_SECONDS))


@dataclass(frozen=True, slots=True)
class KeystoneSettings(Section):
    """`[keystone]`: where other tokens are validated; not at all without a `url`."""

    url: str | None = key(None, read_url)
    username: str | None = key(None, read_text)
    password_file: Path | None = key(None, read_path)
    user_domain: str = key("Default", read_text)
    project: str = key("service", read_text)
    project_domain: str = key("Default", read_text)
    ca_file: Path | None = key(None, read_path)
    timeout_seconds: int = key(10, integer(1, 300))
    cache_seconds: int = key(60, integer(0, 3600))
    roles: tuple[str, ...] = key(("admin", "manager", "member"), read_names)
    """One of them is needed in a project, to do everything in it."""
    client_domain: str = key("Default", read_text)
    """Of the users and projects that clients of /v2.0/tokens name."""
    local: bool = key(True, read_flag)

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.url is not None and self.username is None:
            yield "url", "keystone.username is needed too: the service user that validates tokens"
        if self.url is None and self.username is not None:
            yield "username", "means nothing without keystone.url"
        if self.url is None and not self.local:
            yield "local", "nobody could get in: there is no keystone.url either"


@dataclass(frozen=True, slots=True)
class GlanceSettings(Section):
    """`[glance]`: where images come from that are not here; nowhere without a `url`."""

    url: str | None = key(None, read_url)
    ca_file: Path | None = key(None, read_path)
    timeout_seconds: int = key(30, integer(1, 300))
    max_gigabytes: int = key(1024, integer(1, 16384))


@dataclass(frozen=True, slots=True)
class CatalogSettings(Section):
    """`[catalog]`: what clients are told about where things are."""

    region: str = key("az-1.region-a.geo-1", read_text)
    availability_zone: str = key("nova", read_text)
    public_url: str | None = key(None, read_host_url)
    """None: where the client asked."""
    zones: Mapping[str, str] = named(read_host_url)
    """Further regions, and the URLs of the daemons that serve them."""

    def problems(self) -> Iterator[tuple[str, str]]:
        if self.region in self.zones:
            yield "zones", f"{self.region!r} is this daemon's own region; it is published anyway"


@dataclass(frozen=True, slots=True)
class TenantQuotaSettings(Section):
    """`[quota.tenants.NAME]`; None is what `[quota]` says."""

    volumes: int | None = key(None, read_quota)
    gigabytes: int | None = key(None, read_quota)
    snapshots: int | None = key(None, read_quota)


@dataclass(frozen=True, slots=True)
class QuotaSettings(Section):
    """`[quota]`: the most that a tenant may have; UNLIMITED is no limit."""

    volumes: int = key(1000, read_quota)
    gigabytes: int = key(65536, read_quota)
    snapshots: int = key(1000, read_quota)
    tenants: Mapping[str, TenantQuotaSettings] = named(TenantQuotaSettings)
    """By name (of tenants made here) or by id."""


@dataclass(frozen=True, slots=True)
class LimitSettings(Section):
    """`[limits]`: how much I/O may be done in a second where nothing else was set; 0 is no
    limit."""

    volume_iops: int = key(0, read_io_limit)
    volume_bps: int = key(0, read_io_limit)
    tenant_iops: int = key(0, read_io_limit)
    tenant_bps: int = key(0, read_io_limit)


Listener = NbdSettings | ApiSettings | MetricsSettings | DashboardSettings
"""What listens on TCP, perhaps with TLS."""


@dataclass(frozen=True, slots=True)
class Settings(Section):
    """The whole file, or what stands for it where it says nothing."""

    data_dir: Path = key(DEFAULT_DATA_DIR, read_path)
    """The pool directory; the sockets live in it too."""
    log_level: str = key("info", choice(LOG_LEVELS))
    log: LogSettings = section(LogSettings)
    tls: TlsSettings = section(TlsSettings)
    nbd: NbdSettings = section(NbdSettings)
    api: ApiSettings = section(ApiSettings)
    metrics: MetricsSettings = section(MetricsSettings)
    dashboard: DashboardSettings = section(DashboardSettings)
    fuse: FuseSettings = section(FuseSettings)
    vm: VmSettings = section(VmSettings)
    servers: Mapping[str, ServerSettings] = named(ServerSettings)
    pool: PoolSettings = section(PoolSettings)
    rbd: RbdSettings = section(RbdSettings)
    cache: CacheSettings = section(CacheSettings)
    write_back: WriteBackSettings = section(WriteBackSettings)
    checksums: ChecksumSettings = section(ChecksumSettings)
    identity: IdentitySettings = section(IdentitySettings)
    keystone: KeystoneSettings = section(KeystoneSettings)
    glance: GlanceSettings = section(GlanceSettings)
    catalog: CatalogSettings = section(CatalogSettings)
    quota: QuotaSettings = section(QuotaSettings)
    trash: TrashSettings = section(TrashSettings)
    limits: LimitSettings = section(LimitSettings)

    def problems(self) -> Iterator[tuple[str, str]]:
        for name in self.servers:
            if not is_server_id(name):
                yield "servers", f"{name!r} is not 1 to 255 letters, digits, '.', '_' and '-'"
        for name, listener in self.listeners.items():
            certificates = f"{name}.client_certificates"
            if listener.tls is not TlsMode.OFF and self.tls.certificate_file is None:
                yield f"{name}.tls", "tls.certificate_file and tls.key_file are needed for it"
            if listener.client_certificates is not ClientCertificates.NONE:
                if listener.tls is TlsMode.OFF:
                    yield certificates, f"means nothing without TLS: set {name}.tls"
                elif self.tls.client_ca_file is None:
                    yield certificates, "tls.client_ca_file is needed for it"

    @property
    def listeners(self) -> Mapping[str, Listener]:
        """The sections of what listens on TCP, by name."""
        return {
            "nbd": self.nbd,
            "api": self.api,
            "metrics": self.metrics,
            "dashboard": self.dashboard,
        }

    @property
    def nbd_socket(self) -> Path:
        """NBD over a Unix socket; its permissions decide who may use it."""
        return self.data_dir / "nbd.sock"

    @property
    def api_socket(self) -> Path:
        """The control API over a Unix socket, what `bock` talks to."""
        return self.data_dir / "api.sock"
