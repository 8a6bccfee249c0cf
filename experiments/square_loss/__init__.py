"""The square loss with both layers free."""
