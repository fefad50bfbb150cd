"""bockd: a userspace block-storage daemon. Start reading at docs/architecture.md."""

__version__ = "0.1.0"
