"""Control plane: turns the resources into shards, tenants and maps."""
