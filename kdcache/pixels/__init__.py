"""Bytes and view parameters to uint8 pixels: the only code that touches pixels."""
