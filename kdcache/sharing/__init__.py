"""Caches that teams share: a catalogue of published ones, their transfer, and why to trust them."""
