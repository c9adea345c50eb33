"""PyTorch: datasets over queries, and training state saved every N steps."""
