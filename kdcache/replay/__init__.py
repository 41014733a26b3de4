"""The student's stream."""
