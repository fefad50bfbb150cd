"""Who a request comes from: local accounts and tokens, and a Keystone of the user's own."""
