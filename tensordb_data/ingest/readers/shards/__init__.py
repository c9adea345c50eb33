"""Files with many samples in each, of other libraries: tar files of WebDataset, MDS, TFRecord."""
