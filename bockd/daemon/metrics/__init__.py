"""What the daemon counts, as metrics: docs/metrics.md has them, `api.metrics` shows them."""
