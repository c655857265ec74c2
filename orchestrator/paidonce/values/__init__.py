"""Converts values between Python and the store: codecs for annotations, parameters of functions.

Everything that crosses the boundary of an agent, a step or a tool is encoded once, at
the call, by a codec made from its annotation, and is always passed on as a fresh
``decode(encode(value))``, live as on replay. See ``codecs`` for the promise,
``parameters`` for whole calls, ``annotations`` for what counts as plain JSON. Import the
modules separately: showing a stored value needs none of the codecs.
"""
