"""Programs that run long: soaks, chaos, and upgrades of real servers."""
