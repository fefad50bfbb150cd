"""The daemon: everything put together, behind an export table for NBD and the control interface."""
