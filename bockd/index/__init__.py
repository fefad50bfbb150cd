"""The index: an LMDB environment with checksums, proved before it is mapped."""
