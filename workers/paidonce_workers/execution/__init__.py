"""Executing a step: its attempt, the end of its body, and what is written to the store."""
