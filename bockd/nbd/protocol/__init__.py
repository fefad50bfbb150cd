"""The NBD protocol without I/O: bytes in, events and requests out; replies as bytes."""
