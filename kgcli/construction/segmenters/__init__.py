"""Segmenters: the mask of each entity by a model that is told its noun."""
