"""Settings of a program as one type: from its fields come flags, checks, the record and `--resume`.

A program's settings are a subclass of `Settings`, a field for each:

>>> @dataclasses.dataclass
... class MySettings(Settings):
...     epochs: int = setting(3, whole_number(1), 'passes over the training data')
...     output_dir: str = setting('', str, 'where results go', decides=False)
>>> MySettings.parse(Parser('my program'), ['--epochs', '5'])
MySettings(epochs=5, output_dir='')
>>> MySettings(epochs=5, output_dir='here').decisive()
{'epochs': 5}
>>> MySettings.flags({'epochs': 5, 'output_dir': 'here'})
['--epochs=5', '--output_dir=here']
"""
import argparse
import dataclasses
import re
from typing import Any, Callable, Dict, List, Optional, Sequence, Type, TypeVar, Union

from fltuning.errors import Parser, UserError

Self = TypeVar('Self', bound='Settings')


def setting(default: Any, check: Callable[[str], Any], help: str, choices: Sequence[str] = (),
            decides: bool = True, many: bool = False, instead_of: Optional[str] = None) -> Any:
    """A field of a `Settings` type.

    check: the value of a text; raises argparse.ArgumentTypeError saying what was expected. `bool` makes
        a flag without a value.
    decides: the numbers of a run depend on it. Of paths, the contents of the files do.
    many: its flag takes values one after the other; the setting is the list of them, or None.
    instead_of: a field whose flag is not given together with this one's.
    """
    return dataclasses.field(default=default, metadata=dict(
        check=check, help=help, choices=list(choices) or None, decides=decides, many=many,
        instead_of=instead_of))


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the defaults, where there are any."""

    def _get_help_string(self, action):
        return action.help if action.default in (None, '', False) else super()._get_help_string(action)


@dataclasses.dataclass
class Settings:
    """What a program does. A subclass has the fields, each made by `setting`."""

    @classmethod
    def add_flags(cls, parser: argparse.ArgumentParser, defaults: Optional[Dict[str, Any]] = None):
        """A flag for each field. defaults: of them, as far as they are not the fields' own."""
        groups = {}
        for field in dataclasses.fields(cls):
            if field.metadata['instead_of']:
                group = parser.add_mutually_exclusive_group()
                groups.update({field.name: group, field.metadata['instead_of']: group})
        for field in dataclasses.fields(cls):
            default, flag = (defaults or {}).get(field.name, field.default), '--' + field.name
            check, text = field.metadata['check'], field.metadata['help']
            place = groups.get(field.name, parser)
            if check is bool:
                place.add_argument(flag, action='store_true', default=default, help=text)
                continue
            # As text, so that what stands in a file of settings is checked like what is typed.
            place.add_argument(flag, type=check, choices=field.metadata['choices'], help=text,
                               nargs='+' if field.metadata['many'] else None,
                               default=default if default is None else str(default))

    @classmethod
    def parse(cls: Type[Self], parser: Parser, argv: Optional[List[str]] = None,
              defaults: Optional[Dict[str, Any]] = None, origin: Optional[Dict[str, str]] = None) -> Self:
        """The settings that flags give. Raises UserError, naming the flag."""
        cls.check_defaults(defaults or {}, origin)
        cls.add_flags(parser, defaults)
        return cls(**vars(parser.parse_args(argv)))

    @classmethod
    def check_defaults(cls, defaults: Dict[str, Any], origin: Optional[Dict[str, str]] = None) -> None:
        """Raises UserError if one is none that its flag would take; origin: {setting: file it stands in}."""
        for field in dataclasses.fields(cls):
            value, choices = defaults.get(field.name), field.metadata['choices']
            if value is None or field.metadata['check'] is bool:
                continue
            try:
                field.metadata['check'](str(value))
                if choices and value not in choices:
                    raise argparse.ArgumentTypeError('expected one of %s, got %s' % (', '.join(choices), value))
            except argparse.ArgumentTypeError as error:
                raise UserError('%s: %s: %s' % ((origin or {}).get(field.name, 'default'), field.name, error))

    @classmethod
    def given(cls, argv: Optional[List[str]] = None) -> Dict[str, Any]:
        """{setting: value} of the flags that are there, without defaults. Raises UserError, naming the flag."""
        parser = Parser(add_help=False, allow_abbrev=False)
        cls.add_flags(parser, {field.name: argparse.SUPPRESS for field in dataclasses.fields(cls)})
        return vars(parser.parse_known_args(argv)[0])

    @classmethod
    def of(cls: Type[Self], other: Any, **changes: Any) -> Self:
        """The fields of this type that another object has, changed."""
        return cls(**dict({field.name: getattr(other, field.name) for field in dataclasses.fields(cls)
                           if hasattr(other, field.name)}, **changes))

    def record(self) -> Dict[str, Any]:
        """{setting: value}, JSON-able, all of them."""
        return dataclasses.asdict(self)

    def decisive(self) -> Dict[str, Any]:
        """{setting: value} of those that the numbers of a run depend on."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                if field.metadata['decides']}

    @classmethod
    def of_before(cls) -> Dict[str, Any]:
        """{setting: value} that a file from before there was the setting stands for.

        The field's own default: a new setting changes nothing unless it is given.
        """
        return {field.name: field.default for field in dataclasses.fields(cls)
                if field.metadata['decides']}

    @classmethod
    def flags(cls, values: Dict[str, Any]) -> List[str]:
        """The flags that give these settings, as `record` has them."""
        flags: List[str] = []
        for field in dataclasses.fields(cls):
            value, flag, check = values.get(field.name), '--' + field.name, field.metadata['check']
            if check is bool:
                flags += [flag] * bool(value)
            elif field.metadata['many']:
                flags += [flag] * bool(value) + [str(item) for item in value or []]
            elif value is not None:
                text = ','.join(map(str, value)) if isinstance(value, list) else str(value)
                flags.append('%s=%s' % (flag, text))
            elif check is layer_numbers:  # where the default is another one
                flags.append(flag + '=')
        return flags


def whole_number(minimum: int, maximum: int = 2**31 - 1) -> Callable[[str], int]:
    def parse(text):
        if not text.lstrip('+-').isdigit() or not minimum <= int(text) <= maximum:
            raise argparse.ArgumentTypeError('expected a whole number from %d, got %s'
                                             % (minimum, text))
        return int(text)
    return parse


def number(expected: str, holds: Callable[[float], bool]) -> Callable[[str], float]:
    """For argparse: a number for which `holds` says True; it is asked of NaN where the text is none."""
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float('nan')
        if not holds(value):
            raise argparse.ArgumentTypeError('expected a number %s, got %s' % (expected, text))
        return value
    return parse


positive_number = number('above 0', lambda value: 0 < value < float('inf'))
percent = number('above 0 and up to 100', lambda value: 0 < value <= 100)
share = number('from 0 to below 1', lambda value: 0 <= value < 1)


def share_or_count(text: str) -> Union[int, float]:
    """A whole number from 0, or a share.

    >>> share_or_count('100'), share_or_count('0.1')
    (100, 0.1)
    """
    try:
        return whole_number(0)(text) if text.isdigit() else share(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            'expected a whole number from 0, or a share from 0 to below 1, got %s' % text)


def count_of(value: Union[int, float], total: int) -> int:
    """How many of `total` a setting stands for that is a number of them, or a share.

    >>> count_of(100, 300), count_of(0.1, 300)
    (100, 30)
    """
    return value if isinstance(value, int) else int(round(value * total))


def layer_numbers(text: str) -> Optional[List[int]]:
    """Layers by number; None for all.

    >>> layer_numbers('0-2,11')
    [0, 1, 2, 11]
    """
    numbers: List[int] = []
    for part in filter(None, text.replace(' ', '').split(',')):
        found = re.match(r'(\d+)(?:-(\d+))?$', part)
        if not found or int(found.group(2) or part) < int(found.group(1)):
            raise argparse.ArgumentTypeError('expected layers such as 0-5,11, got %s' % text)
        numbers += range(int(found.group(1)), int(found.group(2) or part) + 1)
    return sorted(set(numbers)) or None
