"""YAML of a user's: one bounded reader of the values that JSON knows."""

from __future__ import annotations

from typing import Any

import yaml

from anaus_bench.errors import SettingsError, shown

MOST_TEXT = 10_000  # characters
MOST_DEPTH = 16
MOST_DIGITS = 100  # characters of a number
GREATEST = 2**63  # integers lie below it, as numpy and torch want them


def read_yaml(text: str) -> Any:
    """The value of a YAML text: null, booleans, numbers, strings, lists, and mappings whose keys are strings.

    Raises:
        SettingsError: No YAML; a tag, an alias, a key given twice or one that is no string; too long, too deep, or with
            a number out of range.
    """
    if len(text) > MOST_TEXT:
        raise SettingsError(f"{shown(text)} is too long a value; at most {MOST_TEXT} characters are read")
    try:
        loader = _Loader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except yaml.MarkedYAMLError as error:
        raise SettingsError(
            f"the value {shown(text)} is no YAML: {error.problem or error.context}; quote text"
        ) from None
    except yaml.YAMLError:  # of the reader: a character that YAML does not know
        raise SettingsError(f"the value {shown(text)} is no YAML: it holds a control code; leave it out") from None


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with bounds; dates, `<<` and `=` are strings, for JSON knows nothing of them."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """A node and those below it."""
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise _refused(event, "anchors and aliases are not read")
        if getattr(event, "tag", None):
            raise _refused(event, "tags are not read")
        if self.depth > MOST_DEPTH:
            raise _refused(event, f"it is nested more than {MOST_DEPTH} deep")
        self.depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self.depth -= 1

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        number = node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float")
        if number and len(node.value) > MOST_DIGITS:
            raise _refused(node, f"it holds a number of more than {MOST_DIGITS} digits")
        try:
            value = super().construct_object(node, deep)
        except ValueError:  # `0x_` looks like a number
            raise _refused(node, f"{shown(node.value)} is no number") from None
        if isinstance(value, int) and not -GREATEST <= value < GREATEST:
            raise _refused(node, "it holds a whole number beyond 64 bits")
        return value

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str":
                raise _refused(key, "a key must be a string")
            if key.value in seen:
                raise _refused(key, f"the key {shown(key.value)} stands there twice")
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_KEPT = ("bool", "float", "int", "null")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _KEPT]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def _refused(place: Any, reason: str) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=reason, problem_mark=place.start_mark)
