"""The REST door: HTTP in, calls of `bockd.control.Control` out; it decides nothing."""
