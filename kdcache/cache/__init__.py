"""Targets on disk."""
