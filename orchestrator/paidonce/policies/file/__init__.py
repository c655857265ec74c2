"""Parsing ``paidonce.yaml``: from its text to a book of policies, or to its errors."""
