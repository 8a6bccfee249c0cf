"""Global minima, one file a loss."""
