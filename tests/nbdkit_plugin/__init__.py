"""The nbdkit plugin, in the distribution's nbdkit, used as people use it."""
