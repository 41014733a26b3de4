"""The batch job that fills a cache."""
