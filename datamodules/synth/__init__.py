"""Licence-free synthetic copies of data set formats, one module a format."""
