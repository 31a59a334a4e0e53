"""Completion of names in a shell (`kg --install-completion`); nothing heavy is imported for it."""

from __future__ import annotations

from collections.abc import Iterable


def recipes(incomplete: str) -> list[str]:
    """Return the shipped recipes that begin so."""
    from kgcli.weights.shipped import is_image

    return [name for name in shipped(incomplete) if not is_image(name)]


def images(incomplete: str) -> list[str]:
    """Return the example images that begin so."""
    from kgcli.weights.shipped import is_image

    return [name for name in shipped(incomplete) if is_image(name)]


def shipped(incomplete: str) -> list[str]:
    """Return the shipped recipes and images that begin so."""
    from kgcli.weights.shipped import shipped_names

    return _beginning(incomplete, shipped_names())


def models(incomplete: str) -> list[str]:
    """Return the models on this machine that begin so: the shipped one and those that were pulled."""
    from kgcli.weights.published.catalogue import CATALOGUE, local_model

    return _beginning(incomplete, ("nano", *(entry.name for entry in CATALOGUE if local_model(entry.name))))


def published(incomplete: str) -> list[str]:
    """Return the published weights that begin so."""
    from kgcli.weights.published.catalogue import CATALOGUE

    return _beginning(incomplete, (entry.name for entry in CATALOGUE))


def schedulers(incomplete: str) -> list[str]:
    """Return the noise schedulers that begin so."""
    from kgcli.config import SCHEDULERS

    return _beginning(incomplete, SCHEDULERS)


def devices(incomplete: str) -> list[str]:
    """Return the kinds of devices that begin so."""
    from kgcli.runtime import DEVICES

    return _beginning(incomplete, ("auto", *DEVICES))


def dtypes(incomplete: str) -> list[str]:
    """Return the precisions that begin so."""
    from kgcli.runtime import DTYPES

    return _beginning(incomplete, ("auto", *DTYPES))


def _beginning(incomplete: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(incomplete)]
