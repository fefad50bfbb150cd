"""The local pool on disk: block maps, layers and journals. No event loop, no policy.

Everything here may block; the driver decides on which thread it runs.
"""
