"""`bock connect` on this machine, with loop devices; tests/guest has the kernel's NBD."""
