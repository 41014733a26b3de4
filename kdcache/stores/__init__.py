"""Objects in buckets, behind HTTP or in folders, and the part of them that is kept on this disk."""
