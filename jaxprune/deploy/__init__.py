"""Deployment: weights from files of other libraries, and back."""
