"""KV memory: the block pool, prefix cache and block tables of one engine."""
