"""What is true: tables, the store, payloads, money, the ledger and its migrations.

Lowest of the three packages; it imports neither ``paidonce`` nor ``paidonce_workers``.
"""
