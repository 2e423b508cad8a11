"""Measure: models, kernels, devices; rows are appended, tables are made of them."""
