"""What a user can fix: every error the command prints as one line and ends with exit code 2.

A message is lower case, says what was found, what was expected and the next step. What it quotes is anybody's text:
`shown` keeps a value short, `escape` keeps a line one line and the terminal's settings as they are.
"""

from __future__ import annotations

import re

LONGEST = 200  # characters of a value in a message
# Control codes (C0, C1), what ends a line or turns its direction, and halves of characters that no encoding can write.
UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def shown(value: object) -> str:
    """A value as a message quotes it: its `repr`, cut where it is longer than `LONGEST` characters."""
    text = repr(value)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}... ({len(text)} characters)"


def escape(text: str) -> str:
    """The text with its control codes written out: an escape is the four characters `\\x1b`, a line feed `\\n`."""
    return UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class AnausError(Exception):
    """Base of all errors that a user can fix."""


class SettingsError(AnausError):
    """A setting is unknown, has a wrong value, or does not fit the rest."""


class PluginError(AnausError):
    """A plugin is unknown, broken, or answers wrongly."""


class StoreError(AnausError):
    """The store is from a newer version, damaged, or cannot be written."""


class MachineError(AnausError):
    """The machine failed: no space, no memory, no access, a broken disk; what is finished is kept."""


class WeightsError(AnausError):
    """Published weights are absent, truncated, of another model, or have a wrong hash."""


class TrainingError(AnausError):
    """Training cannot start or go on, such as a loss that is not finite."""


class DataError(AnausError):
    """Base of all errors about a data set; the message names the data set and its root."""


class DatasetNotFound(DataError):
    """The root is missing or empty."""


class LayoutError(DataError):
    """The root exists but does not have the data set's folders."""


class WrongVersion(DataError):
    """Another edition of the data set was recognised."""


class MissingMask(DataError):
    """An image has no mask where one is required."""


class OrphanMask(DataError):
    """A mask has no image."""


class SizeMismatch(DataError):
    """The sizes of an image and its mask differ."""


class UnreadableFile(DataError):
    """A file cannot be decoded."""


class EndOfClip(UnreadableFile):
    """A video ends before the frame; those before it can be read."""


class EmptyMask(DataError):
    """A lesion image has an all-zero mask."""


class LabelError(DataError):
    """A class folder or prefix is unknown."""


class DuplicateId(DataError):
    """Two samples have one id."""


class BadMaskValues(DataError):
    """A mask holds values outside the known set."""


class CountMismatch(DataError):
    """The number of samples differs from what is needed."""


class LeakageError(DataError):
    """A group stands in two folds, or a test image in the corpus."""
