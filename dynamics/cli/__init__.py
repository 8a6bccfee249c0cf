"""The command line: sweeps described in a file."""
