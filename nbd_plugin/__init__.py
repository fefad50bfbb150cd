"""The nbdkit frontend: `nbdkit python nbd_plugin/bock.py pool=DIRECTORY`. See docs/nbdkit.md."""
