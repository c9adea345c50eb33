"""Save a training loop every N steps, in the background. This knows no framework; the integrations do."""
