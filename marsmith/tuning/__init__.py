"""Find a model's runtime, precision and serving settings on this host by measuring."""
