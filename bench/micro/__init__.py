"""Single functions of the hot path, timed: `make bench-micro`."""
