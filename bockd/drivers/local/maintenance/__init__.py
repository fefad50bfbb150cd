"""Work in the background: removing what nothing refers to any more, and merging layers."""
