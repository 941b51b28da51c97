"""State: the tables, transactions as functions, and one module for each entity."""
