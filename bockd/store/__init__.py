"""The pool on disk: index, block maps, layers and journals. No event loop, no policy.

Everything here may block; the engine decides on which thread it runs.
"""
