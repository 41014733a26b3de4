"""Recipes that come with kdcache, by name."""
