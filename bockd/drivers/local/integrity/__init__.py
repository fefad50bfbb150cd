"""Whether the pool is whole: the check, and frozen blocks against their checksums."""
