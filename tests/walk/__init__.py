"""README.md's walk, line by line."""
