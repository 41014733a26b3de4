"""What a machine is, and whether caches made elsewhere will replay bit for bit on it."""
