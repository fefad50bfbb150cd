"""The NBD frontend: sockets, connections and limits around the I/O-free `bockd.nbd.protocol`."""
