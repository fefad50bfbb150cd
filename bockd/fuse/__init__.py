"""The file view: volumes and snapshots as files of a FUSE mount, through the volume contract."""
