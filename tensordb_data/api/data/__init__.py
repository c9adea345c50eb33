"""The facade of samples: `db.data`, and what a Selection of them does."""
