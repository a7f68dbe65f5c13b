"""Floor 2: which expert serves which token, and on which shard. Knows no weights and no sockets."""
