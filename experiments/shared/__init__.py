"""What several experiments use: random instances, judges that know nothing of the library, pictures."""
