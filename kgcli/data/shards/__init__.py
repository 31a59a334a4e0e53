"""Shards: WebDataset tar files with a parquet index beside each, and the records they hold."""
