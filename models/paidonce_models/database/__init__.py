"""The database: connections and transactions, their errors, the schema and its version."""
