"""The data plane: the pool, its reclaim and the NBD server put together behind two faces, an export
table for NBD and the control interface for everything else."""
