"""Search: words to entities of all five kinds, ranked.

A search does not read the entities. It reads one small document, an entry, for each group of entities with the same
words: samples of one dataset with the same tags, or rows of one run with the same tags. A million samples with a few
thousand different sets of tags are a few thousand documents, and a writer adds one only for a set that it has not met
before.
"""
