"""The public frontend: the HP Block Storage API, as its specification and its clients speak it.

HTTP in, calls of `bockd.blockstorage.contract` out; it decides nothing. "Section" in docstrings is
a section of the HP Block Storage API specification.
"""
