"""Logs and tables read into a dataset, and a dataset read in batches."""
