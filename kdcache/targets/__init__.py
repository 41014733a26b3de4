"""Logits to compact targets and back; pure."""
