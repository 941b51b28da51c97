"""The state: schema, migrations, and one module an entity."""
