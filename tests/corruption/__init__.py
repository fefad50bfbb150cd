"""Damage to every part of a small pool: detected, repaired or refused by name, never served."""
