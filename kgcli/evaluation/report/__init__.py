"""Scored runs compared, tabulated and shown as a page."""
