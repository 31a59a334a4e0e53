"""Commands around a model that stays loaded: a shell, a server and measurements of speed."""
