"""Drills: breaking a fleet on purpose and counting, outside of it, what was repeated."""
