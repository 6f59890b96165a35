"""YAML whose every value knows its place: errors name file and line."""
import argparse
from typing import Any, Callable, Collection, Dict, List, Optional

import yaml

from fltuning.errors import UserError
from fltuning.files import read_text


class Place:
    """A value of a YAML file, what it is called, and where it stands.

    >>> place = Place.parse('grid.yml', 'seeds: [1, 2]')
    >>> place.mapping(['seeds'])['seeds'].values(int)
    [1, 2]
    >>> place.mapping(['rates'])
    Traceback (most recent call last):
    fltuning.errors.UserError: grid.yml: line 1: unknown key seeds: expected one of rates
    """

    def __init__(self, path: str, node: yaml.Node, name: str = ''):
        self.path, self.node, self.name = path, node, name

    @classmethod
    def parse(cls, path: str, text: str) -> 'Place':
        try:
            node = yaml.compose(text, yaml.SafeLoader)
        except yaml.MarkedYAMLError as error:
            mark = error.problem_mark or error.context_mark
            raise UserError('%s: line %d: not YAML: %s' % (path, mark.line + 1 if mark else 1, error.problem))
        except (yaml.YAMLError, RecursionError) as error:
            raise UserError('%s: not YAML: %s' % (path, error))
        if node is None:
            raise UserError('%s: there is nothing in it' % path)
        return cls(path, node)

    @classmethod
    def read(cls, path: str) -> 'Place':
        return cls.parse(path, read_text(path))

    def error(self, message: str) -> UserError:
        """To be raised; the message says what was expected."""
        return UserError('%s: line %d: %s%s' % (self.path, self.node.start_mark.line + 1,
                                                self.name + ': ' if self.name else '', message))

    def is_empty(self) -> bool:
        return self.node.tag == 'tag:yaml.org,2002:null'

    def mapping(self, allowed: Optional[Collection[str]] = None) -> Dict[str, 'Place']:
        """{key: its value}. Raises UserError for a key that is not allowed, and for one that comes twice."""
        if not isinstance(self.node, yaml.MappingNode):
            raise self.error('expected keys with values')
        found: Dict[str, Place] = {}
        for key_node, value_node in self.node.value:
            key_place = Place(self.path, key_node, self.name)
            key = key_place.text()
            if allowed is not None and key not in allowed:
                raise key_place.error('unknown key %s: expected one of %s' % (key, ', '.join(allowed)))
            if key in found:
                raise key_place.error('%s is there twice' % key)
            found[key] = Place(self.path, value_node, key)
        return found

    def items(self) -> List['Place']:
        """Of a list, at least one; one value without brackets is a list of it."""
        if isinstance(self.node, yaml.ScalarNode) and not self.is_empty():
            return [self]
        if not isinstance(self.node, yaml.SequenceNode) or not self.node.value:
            raise self.error('expected a list of at least one')
        return [Place(self.path, node, self.name) for node in self.node.value]

    def text(self) -> str:
        """Of one value, as it is written."""
        if not isinstance(self.node, yaml.ScalarNode):
            raise self.error('expected one value')
        return self.node.value

    def is_true(self) -> bool:
        if self.text().lower() not in ('true', 'false'):
            raise self.error('expected true or false, got %s' % self.text())
        return self.text().lower() == 'true'

    def check(self, check: Callable[[str], Any]) -> Any:
        """What `check` makes of the text: of those of a program's flags. Raises UserError."""
        if check is bool:
            return self.is_true()
        try:
            return check(self.text())
        except (argparse.ArgumentTypeError, ValueError) as error:
            raise self.error(str(error))

    def choice(self, choices: Collection[str]) -> str:
        if self.text() not in choices:
            raise self.error('unknown %s: expected one of %s' % (self.text(), ', '.join(choices)))
        return self.text()

    def values(self, check: Callable[[str], Any]) -> list:
        """Of a list, checked, each once. Raises UserError for one that comes twice."""
        found: list = []
        for item in self.items():
            value = item.check(check)
            if value in found:
                raise item.error('%s is there twice' % item.text())
            found.append(value)
        return found
