"""Comparing bundles: pairing, errors, noise floor, coverage."""
