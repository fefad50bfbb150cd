"""The local pool: copy-on-write volumes in files of one directory, without an event loop."""
