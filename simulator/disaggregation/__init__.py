"""Prefill and decode in clusters of their own: handover, links, backpressure."""
