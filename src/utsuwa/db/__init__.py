"""The database: the schema, transactions, and one module per entity."""
