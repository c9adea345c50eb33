"""Texts that are given where a folder is expected, and can hardly mean one."""

from __future__ import annotations

import os
import re

_AROUND = ('"', "'", "`", "\ufeff")
_ADDRESS = re.compile(r"[A-Za-z][\w+.-]+:/|.*://", re.DOTALL)  # a drive of Windows has one letter
_LOGIN = re.compile(r"[^/]*:.*@", re.DOTALL)
_HOST_AND_PORT = re.compile(r"(\[[0-9A-Fa-f:]+\]|[\w.-]+):\d+([/?,].*)?", re.DOTALL)


def is_wrapped(text: str) -> bool:
    """Whether a text has a quote, a blank, a byte order mark or a line break around it, as some files leave it."""
    return text != text.strip() or text.startswith(_AROUND) or text.endswith(_AROUND) or "\n" in text or "\r" in text


def folder_fault(text: str) -> str | None:
    """What is wrong with a text as the name of a folder; None if nothing is. It shows nothing that may be secret."""
    if is_wrapped(text):
        return "begins or ends with a quote, a blank or a line break, which belongs to no name: take it away"
    if _ADDRESS.match(text) or _LOGIN.match(text):
        return "looks like an address, which is written as text, scheme://user:password@host/…, and not as a Path"
    if _HOST_AND_PORT.fullmatch(text):
        return "looks like a host and a port, and a server is named by mongodb://host:port/database"
    if text.startswith("~") and os.path.expanduser(text) == text:
        return f"names the home of a user that is not known here, {text.split('/')[0]!r}"
    return None
