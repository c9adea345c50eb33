"""What trainers of other libraries report, as rows of a run: for those that do not save through us."""
