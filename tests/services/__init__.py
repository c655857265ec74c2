"""The real servers that tests talk to, each behind a fixture, and what keeps tests from leaving anything behind.

A server that is missing skips the test on a developer's machine and fails it where ``CI=true``. Servers that are
already there are shared politely: an own database, an own vhost. Whatever a test stops or flushes it starts itself.
``TEST_POSTGRES_URL`` and ``TEST_AMQP_URL`` name other servers than those of the local defaults.
"""
