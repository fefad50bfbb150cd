"""The cache in front of devices."""
