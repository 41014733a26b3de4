"""kdcache: teacher logits computed once over seeded views, and replayed bit for bit."""

__version__ = "0.1.0"
