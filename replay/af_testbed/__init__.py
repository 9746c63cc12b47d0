"""A small real engine with attention and FFN in processes of their own: a truth to hold to.

One attention process keeps the KV cache and the router, one or two FFN processes hold the
experts; all run a Qwen3-MoE decoder of random weights in fp32 with torch on the CPU, one
thread each, pinned. Activations cross shared memory; a micro-batch is handed over by a flag
that the receiver spins on. ``python -m replay.af_testbed -h`` records its runs as bundles.
"""
