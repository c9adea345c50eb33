"""Search: words to entities of all five kinds, ranked.

What is searched is not the entities but one small document for each group of them that a word cannot tell apart:
samples of one dataset with the same tags, rows of one run with the same tags. A million samples with a few thousand
different sets of tags are a few thousand documents, and a writer adds one only for a set that it has not met before.
"""
