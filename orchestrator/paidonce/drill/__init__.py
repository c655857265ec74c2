"""Drills: break a fleet on purpose and count, outside it, what was repeated."""
