"""Several streams as one."""
