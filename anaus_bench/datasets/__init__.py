"""Folders of data sets, read through the `Dataset` interface."""
