"""Where parameters are served from."""
