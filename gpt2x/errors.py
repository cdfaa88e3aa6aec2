"""Errors whose message is all that a user needs."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend: the message says what is wrong and what to do. Printed without a traceback."""


class FolderInUse(UserError):
    """Another process works in the folder."""
