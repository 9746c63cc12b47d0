"""What happened: bundles, workloads, metric definitions and the formats they come from."""
