"""The configuration: one TOML file, the environment above it, and typed settings for everybody.

`bockd.example.toml` names every key with its default. `sections` has a record for each table of
the file, `values` reads and checks single values, `decode` fills records from a document, `lines`
knows where in the file a key stands, and `load` finds the file and puts the environment above it.

A new section is a record in `sections`, a line in `Settings`, and its lines in the example.
"""

from bockd.config.address import Address
from bockd.config.load import load_settings
from bockd.config.sections import Settings

__all__ = ["Address", "Settings", "load_settings"]
