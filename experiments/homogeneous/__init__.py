"""Results on homogeneous networks."""
