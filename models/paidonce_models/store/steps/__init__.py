"""Statements on a step: claiming, leases, completing, ending it from outside an attempt."""
