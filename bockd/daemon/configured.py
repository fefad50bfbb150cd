"""What the configuration makes of the parts: quotas, zones, the catalog, the identity service."""

from __future__ import annotations

from api.openstack.catalog import Catalog, Zone
from bockd.blockstorage.contract import Quota
from bockd.blockstorage.plugging import Devices
from bockd.blockstorage.running import ExportPublisher, StorageContext
from bockd.blockstorage.trashcontract import TrashRules
from bockd.config.sections import (
    CatalogSettings,
    KeystoneSettings,
    QuotaSettings,
    Settings,
    TenantQuotaSettings,
)
from bockd.config.trash import TrashSettings
from bockd.identity.contract import Identity
from bockd.identity.keystone.fallback import FallbackIdentity
from bockd.model import IoLimits, IoRate, Server
from bockd.pool.pool import Pool


def storage_context(
    settings: Settings, pool: Pool, exports: ExportPublisher, devices: Devices
) -> StorageContext:
    """Build the context in which the operations of block storage run."""
    quota, limits = settings.quota, settings.limits
    return StorageContext(
        pool,
        exports,
        default_quota=Quota(quota.volumes, quota.gigabytes, quota.snapshots),
        default_zone=settings.catalog.availability_zone,
        write_back_tenants=frozenset(settings.write_back.tenants),
        volume_limits=_io_limits(limits.volume_iops, limits.volume_bps),
        tenant_limits=_io_limits(limits.tenant_iops, limits.tenant_bps),
        devices=devices,
        strict_servers=settings.api.strict_servers,
        trash=trash_rules(settings.trash),
        tenant_quotas={tenant: _tenant_quota(quota, own) for tenant, own in quota.tenants.items()},
    )


def servers(settings: Settings) -> list[Server]:
    """Return the configured servers, to which volumes can be attached."""
    return [own.record(name) for name, own in settings.servers.items()]


def trash_rules(settings: TrashSettings) -> TrashRules:
    """Return what happens to what is deleted."""
    return TrashRules(settings.keep_seconds, settings.counts_in_quota, settings.full_percent)


def _io_limits(iops: int, bps: int) -> IoLimits:
    """Limits of I/O as the configuration has them: 0 is none."""
    return IoLimits(iops=IoRate(iops) if iops else None, bps=IoRate(bps) if bps else None)


def _tenant_quota(default: QuotaSettings, own: TenantQuotaSettings) -> Quota:
    def either(mine: int | None, general: int) -> int:
        return general if mine is None else mine

    return Quota(
        volumes=either(own.volumes, default.volumes),
        gigabytes=either(own.gigabytes, default.gigabytes),
        snapshots=either(own.snapshots, default.snapshots),
    )


def catalog(settings: CatalogSettings) -> Catalog:
    """Build the catalog that clients get. This daemon's region comes first, because the daemon
    answers for itself."""
    others = (Zone(region, url) for region, url in settings.zones.items())
    return Catalog((Zone(settings.region, settings.public_url), *others))


def one_identity(
    settings: KeystoneSettings, local: Identity, keystone: Identity | None
) -> Identity:
    """Choose who is asked about tokens: bockd's own accounts, Keystone, or both in this order."""
    if keystone is None:
        return local
    return FallbackIdentity(local, keystone) if settings.local else keystone
