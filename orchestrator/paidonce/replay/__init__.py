"""Replay: an agent's coroutine as a pure function of its run's recorded events.

Nothing in here reads a clock, a socket, a random source or the store; everything that
happened reaches the agent as events, which the machine delivers one at a time.
"""
