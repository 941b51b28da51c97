"""State: the tables, transactions as functions, and one module per entity."""
