"""The daemon as a service: its systemd unit, and the daemon confined as the unit says."""
