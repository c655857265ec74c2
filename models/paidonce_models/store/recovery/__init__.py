"""Statements that find what died or was forgotten: liveness, expired leases, what is due, marks before a death."""
