"""Statements on a run: submitting, its event history, advancing, cancelling, ending."""
