"""Identity from a Keystone v3 of the user's own: its tokens are accepted here.

`exchange` speaks HTTP with it, `documents` knows its JSON, `client` its operations, `believed`
keeps for a moment what it said, `identity` makes the contract's `Identity` of that, `either` puts
bockd's own accounts beside it, and `opening` puts it all together from the configuration. The API
is OpenStack's Identity API v3.
"""
