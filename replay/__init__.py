"""Making bundles: capture from vLLM, live replay, replay in the simulator, and the command line."""
