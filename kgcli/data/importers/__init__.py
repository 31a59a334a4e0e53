"""Importers of foreign data layouts into shards, one layout a module."""
