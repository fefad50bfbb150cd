"""The NBD clients that people have, each in its own release, against a running daemon."""
