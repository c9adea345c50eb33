"""Large immutable bytes: stores, segments and the reader."""
