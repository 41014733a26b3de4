"""The study: who learns best from a teacher, on digits, through the real store and stream."""
