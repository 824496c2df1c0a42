"""Seeded scripts that made the weights and the sample pictures of this repository."""
