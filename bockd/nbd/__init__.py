"""The NBD frontend: the protocol without input or output, and the server around it."""
