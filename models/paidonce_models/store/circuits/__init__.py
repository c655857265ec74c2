"""Statements on circuits: their changes, and the steps that are parked while one is open."""
