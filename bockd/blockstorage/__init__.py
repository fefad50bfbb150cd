"""The rules of the HP Block Storage API over a pool: tenants, quotas, statuses, attachments."""
