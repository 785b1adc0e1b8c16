"""Datasets: packaged sets, your own arrays, and the guarded test split."""
