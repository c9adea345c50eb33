"""The pages, and the changes that they offer. Each is a function from what was asked to the answer."""
