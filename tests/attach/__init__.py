"""Attachments as exports: real clients over TCP and the Unix socket, against the real daemon."""
