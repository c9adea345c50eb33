"""What keeps tests the same on any machine, however busy, and tells why where they are not."""
