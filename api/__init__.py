"""The REST frontends: the operator's control API here, the public one in `api.openstack`. HTTP in,
calls of an interface out; they decide nothing."""
