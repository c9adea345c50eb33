"""What can be stored: samples, architectures, parameters, jobs and logs."""
