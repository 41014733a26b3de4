"""What a view is; pure."""
