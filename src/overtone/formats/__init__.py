"""Dictionaries in the formats of the field, to read and to write (docs/formats.md)."""

from overtone.formats.folders import Found, InputNorm, export, is_own, load, names, read
from overtone.formats.hub import push
from overtone.formats.plain import FormatError

__all__ = ["FormatError", "Found", "InputNorm", "export", "is_own", "load", "names", "push", "read"]
