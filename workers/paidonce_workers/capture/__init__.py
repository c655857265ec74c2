"""Usage capture: records requests to LLM providers inside a step's body as calls of its attempt, automatically.

It taps the HTTP layer of ``httpx``, ``httpx2`` and ``aiohttp``, which the providers'
SDKs use: request -> ``provider_endpoints`` (is it a paid one?) -> ``observation`` (one per HTTP
request) -> ``responses`` (the usage in the response) -> the attempt's
``CallRecorder``. ``threads`` lets attribution follow threads that a step starts.
``installation`` installs and removes the taps.
"""

from paidonce_workers.capture.installation import Installation, capturing, install

__all__ = ["Installation", "capturing", "install"]
