"""Numbered migrations of the schema, run at start-up by `db.upgrade`."""
