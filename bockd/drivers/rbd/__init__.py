"""A pool in a Ceph cluster: volumes are RBD images, the index is a log that its gateways share."""
