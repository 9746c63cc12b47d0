"""Runs inside the vLLM server and writes what it does to a spool.

In scope: one row per request, step, forward pass (with its experts and collectives), KV
transfer and choice of DP rank.
Out of scope: deciding anything, and tables (``traces/spool.py`` makes those).

The folder that holds this package is put on PYTHONPATH, in the server's own environment,
container or host; so it needs nothing but the standard library and what vLLM itself needs
(Python 3.10 or later), and imports no other part of frontier. Two variables steer it:

FRONTIER_SPOOL  directory to write to; created if missing
FRONTIER_KEY    hex key of the prefix hashes, the same for all engines of one capture
"""
