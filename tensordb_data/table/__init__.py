"""A Selection as a table: counts, summaries, samples of it, aggregations, pages and facets."""
