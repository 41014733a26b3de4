"""Tars on disk to samples."""
