"""Identity from a Keystone v3 of the user's own: its tokens are accepted here.

`exchange` speaks HTTP with it, `documents` has its JSON, `client` its operations, `tokencache`
keeps for a moment what it said, `identity` makes the contract's `Identity` of that, `fallback` adds
bockd's own accounts as a second identity, and `opening` builds it all from the configuration. The
API is OpenStack's Identity API v3.
"""
