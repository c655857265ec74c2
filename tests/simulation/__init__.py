"""A whole fleet in one thread: random agents, random crashes, random delivery orders, one store.

``programs`` makes the agents, ``schedule`` the decisions, ``store`` the moments at
which something can go wrong, ``fleet`` the workers and the broker; ``invariants``
and ``replaying`` say what must hold whatever happened.
"""
