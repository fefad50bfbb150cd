"""What set-up and `make check` do by scripts of their own."""
