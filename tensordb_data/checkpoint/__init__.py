"""Parameters every N steps: snapshot, persist, load. Framework-free; the hooks are in the integrations."""
