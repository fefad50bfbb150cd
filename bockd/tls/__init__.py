"""Certificates that the daemon makes and serves with, and those that a client trusts."""
