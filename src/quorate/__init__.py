"""Quorate: efficient deep ensembles."""
