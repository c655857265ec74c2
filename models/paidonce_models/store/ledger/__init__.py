"""Statements on money: calls, their sums, prices, cost queries and bills."""
