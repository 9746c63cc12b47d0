"""What would happen: a deployment of clusters, replicas, schedulers and operators, simulated."""
