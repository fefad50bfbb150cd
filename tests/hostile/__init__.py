"""Clients that mean harm, or behave like it: what they can do to the server and to others."""
