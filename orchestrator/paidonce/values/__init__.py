"""Values on their way between Python and the store: codecs for annotations, parameters of functions.

Everything that crosses the border of an agent, a step or a tool is encoded once,
at the call, by a codec made from its annotation, and is always handed on as a fresh
``decode(encode(value))``, on the live path as on replay. See ``codecs`` for the
promise, ``parameters`` for whole calls, ``annotations`` for what counts as plain JSON.
"""

from paidonce.values.codecs import Codec, codec_for
from paidonce.values.constructed import natural_json
from paidonce.values.parameters import Parameters
from paidonce.values.signatures import code_hash, result_shape, signature_hash

__all__ = ["Codec", "Parameters", "code_hash", "codec_for", "natural_json", "result_shape", "signature_hash"]
