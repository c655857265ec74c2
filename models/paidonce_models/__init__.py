"""The data model: tables, the store's statements, payloads, money, the ledger and its migrations.

The lowest of the three packages; imports neither ``paidonce`` nor ``paidonce_workers``.
"""
