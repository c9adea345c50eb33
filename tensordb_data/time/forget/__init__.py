"""Forget samples: delete them with all that is stored of them."""
