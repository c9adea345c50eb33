"""Curation: embeddings, labels that are likely wrong, and the files of a labelling tool."""
