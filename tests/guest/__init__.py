"""Tests in which a real kernel, in a QEMU guest, is the NBD client."""
