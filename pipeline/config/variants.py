"""Sections of which a config has one of several, such as the sources: one file each, imported when needed."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated, Any, ClassVar, Self, TypeVar, get_args

from pydantic import GetJsonSchemaHandler, TypeAdapter, ValidationError
from pydantic_core import InitErrorDetails, core_schema

from pipeline.config.section import Section
from pipeline.errors import InputError

OUTSIDE = "python"  # the name of the variant that is in a file of the user's own


class Variant(Section):
    """A section that is one of several, distinguished by one key; its other keys are its own.

    Attributes
    ----------
    also_called : tuple of str
        Other names, for messages.
    """

    also_called: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def resolve(cls, raw: Mapping[str, Any]) -> type[Self]:
        """Return the class that validates these keys; a subclass if the keys name one."""
        return cls

    def code(self) -> str | None:
        """Return the SHA-256 of the user's file that this section executes; None without one."""
        return None


V = TypeVar("V", bound=Variant)


class Variants(Mapping[str, type[V]]):
    """The sections that a key of the config may name: a lazy mapping from names to classes.

    A module of `package` has the section with the module's name, with ``-`` for ``_``. Other distributions add theirs by entry points.
    As an annotation, `Annotated[Base, variants]` makes pydantic validate a mapping by the section that it names.

    Parameters
    ----------
    base : type
        The base class of all; its first field is `key`.
    key : str
        The key that distinguishes them, such as ``source``.
    package : str
        Dotted name of a package with one module for each.
    group : str
        The group of entry points.
    """

    def __init__(self, base: type[V], key: str, package: str, group: str) -> None:
        self.base, self.key, self._package, self._group = base, key, package, group

    @cached_property
    def own(self) -> tuple[str, ...]:
        """Names of those with a module in the package, sorted; nothing is imported."""
        path = import_module(self._package).__path__
        return tuple(sorted(module.name.replace("_", "-") for module in pkgutil.iter_modules(path)))

    @cached_property
    def _installed(self) -> dict[str, EntryPoint]:
        """Those of other distributions by name."""
        return {entry.name: entry for entry in entry_points(group=self._group) if entry.name not in self.own}

    @property
    def default(self) -> str:
        """The name if the key is left out."""
        return str(self.base.model_fields[self.key].default)

    def __iter__(self) -> Iterator[str]:
        yield from (*self.own, *sorted(self._installed))

    def __len__(self) -> int:
        return len(self.own) + len(self._installed)

    def __contains__(self, name: object) -> bool:
        return name in self.own or name in self._installed

    def __getitem__(self, name: str) -> type[V]:
        """The section of this name.

        Raises
        ------
        KeyError
            If there is none.
        InputError
            If what an installed distribution registers is no such section.
        """
        if name in self.own:
            found = vars(import_module(f"{self._package}.{name.replace('-', '_')}")).values()
            return next(each for each in found if self._is_named(each, name))
        entry = self._installed[name]
        found_there = entry.load()
        if not self._is_named(found_there, name):
            raise InputError(
                f"{self.key} {name}: got {entry.value} from an entry point, expected a subclass of "
                f"{self.base.__name__} whose {self.key} is Literal[{name!r}]. Correct the distribution that registers it."
            )
        return found_there

    def _is_named(self, found: Any, name: str) -> bool:
        if not (isinstance(found, type) and issubclass(found, self.base)):
            return False
        return name in get_args(found.model_fields[self.key].annotation)

    def section_of(self, raw: Mapping[str, Any]) -> type[V]:
        """Return the section that validates these keys.

        Raises
        ------
        ValidationError
            If there is no such section.
        """
        name = raw.get(self.key, self.default)
        if not isinstance(name, str) or name not in self:
            expected = " or ".join(repr(each) for each in self)
            wrong = InitErrorDetails(type="literal_error", loc=(self.key,), input=name, ctx={"expected": expected})
            raise ValidationError.from_exception_data(self.base.__name__, [wrong])
        return self[name].resolve(raw)

    def meant(self, name: str) -> str:
        """Return the name that another name stands for, else the name itself."""
        return next((own for own in self.own if name.lower() in self[own].also_called), name)

    def default_section(self) -> V:
        """Return the section of a config without one."""
        return self[self.default]()

    def owners(self, key: str) -> list[str]:
        """Return the names of the sections with a key that not all have."""
        if key in self.base.model_fields:
            return []
        return [name for name in self.own if key in self[name].model_fields]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> core_schema.CoreSchema:
        return core_schema.no_info_before_validator_function(self._validated, handler(source))

    def __get_pydantic_json_schema__(self, core: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        """The keys that the named section has; any where a file of the user's own defines it."""
        branches = []
        for name in self:
            named = {"properties": {self.key: {"const": name}}, "required": [] if name == self.default else [self.key]}
            own = {"required": ["path"]} if name == OUTSIDE else handler(self[name].__pydantic_core_schema__)
            branches.append({"if": named, "then": own})
        field = self.base.model_fields[self.key]
        key = {"enum": list(self), "default": self.default, "description": field.description}
        return {"type": "object", "properties": {self.key: key}, "allOf": branches}

    def _validated(self, raw: Any) -> Any:
        if not isinstance(raw, Mapping):
            return raw  # a section already, or what pydantic refuses
        section = self.section_of(raw)
        return section.model_validate(self._meaningful(section, raw))

    def _meaningful(self, section: type[V], raw: Mapping[str, Any]) -> dict[str, Any]:
        """The keys without those of other variants at their defaults.

        Templates and run directories of earlier versions name every key of every variant.
        """
        foreign = [key for key in raw if key not in section.model_fields]
        silent = {key for key in foreign if self._says_nothing(str(key), raw[key])}
        return {key: value for key, value in raw.items() if key not in silent}

    def _says_nothing(self, key: str, value: Any) -> bool:
        owners = self.owners(key)
        return bool(owners) and (value is None or any(_is_default(self[name], key, value) for name in owners))


def _is_default(section: type[Section], key: str, value: Any) -> bool:
    field = section.model_fields[key]
    if field.is_required():
        return False
    try:
        annotated: Any = Annotated[field.annotation, field]
        found = TypeAdapter(annotated).validate_python(value)
    except ValidationError:
        return False
    return bool(found == field.get_default(call_default_factory=True))


def variants_in(field: Any) -> Variants[Any] | None:
    """Return the variants that a field of a section is one of, None where it is none."""
    return next((item for item in field.metadata if isinstance(item, Variants)), None)


def sections_in(field: Any) -> Iterator[type[Section]]:
    """Yield the sections that a field may hold: those that its type names, or all variants."""
    variants = variants_in(field)
    if variants is not None:
        yield from (variants[name] for name in variants.own)
    else:
        yield from _sections(field.annotation)


def _sections(annotation: Any) -> Iterator[type[Section]]:
    if isinstance(annotation, type) and issubclass(annotation, Section):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _sections(part)
