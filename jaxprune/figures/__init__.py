"""Figures of formulas, searches, comparisons, layers and networks, drawn with matplotlib."""
