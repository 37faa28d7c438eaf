"""Graphs of models: their steps, which channels stand and fall together, layers with fewer of them."""
