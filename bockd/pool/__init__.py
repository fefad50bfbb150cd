"""The pool contract: what the frontends and block storage may ask of any kind of pool."""
