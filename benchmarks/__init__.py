"""The same work done by Paidonce and by its neighbours, measured in one way. See ``python -m benchmarks --help``."""
