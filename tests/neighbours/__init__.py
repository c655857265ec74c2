"""Paidonce beside other software, each neighbour installed for real: `make test-neighbours`."""
