"""How long a step takes: models that map the shape of a batch to time."""
