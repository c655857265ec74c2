"""Statements on budgets: rules, accounts, what attempts reserve and spend, held steps."""
