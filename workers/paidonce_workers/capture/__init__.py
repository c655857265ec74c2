"""Usage capture: requests to LLM providers inside a step's body become calls of its attempt, unasked.

Seen at the HTTP layer of ``httpx``, ``httpx2`` and ``aiohttp``, which the
providers' SDKs stand on: request -> ``hosts`` (is it a paid one?) -> ``observation`` (one for
each HTTP request) -> ``answers`` (what the reply says of usage) -> the
attempt's ``CallRecorder``. ``threads`` lets attribution follow threads that a
step starts. ``installation`` puts it all in place and takes it away again.
"""

from paidonce_workers.capture.installation import Installation, capturing, install

__all__ = ["Installation", "capturing", "install"]
