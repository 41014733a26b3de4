"""The light trainer."""
