"""What the documentation site is built with; see docs/conf.py."""
