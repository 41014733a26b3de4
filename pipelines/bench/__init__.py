"""Benchmarks: what kdcache claims of its speed, measured side by side with what others use."""
