"""Which data a pass goes over."""
