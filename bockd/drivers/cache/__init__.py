"""A read cache on the local disk, in front of the open volumes of any pool that is elsewhere."""
