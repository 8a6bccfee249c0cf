"""Cross-entropy: global minima, with decay and with bounded norms."""
