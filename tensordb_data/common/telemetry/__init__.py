"""What a process counts about itself, and how others read it."""
