"""Device profiles: volumes that are as slow as another device, and fail like one."""
