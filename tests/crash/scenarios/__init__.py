"""Crashes and races by name: each with its interleaving forced, and with proof that it matters."""
