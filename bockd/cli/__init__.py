"""The command lines: `bockd` (the daemon and offline work) and `bock` (its client)."""
