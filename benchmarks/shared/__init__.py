"""What the benchmarks share: the harness, the data, the peers of saves, the pictures."""
