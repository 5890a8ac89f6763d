"""A table: the names that a spec may use for one kind of component, and the arguments that each name takes.

The signature is the schema. What the run supplies stands before the `*`, what the spec supplies after it. Torch's own
classes enter as they are (`add`), with the parameters that a spec may not set left out.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, TypeVar, overload

from fitkit.spec.types import Range

F = TypeVar("F", bound=Callable[..., Any])
REQUIRED: Any = inspect.Parameter.empty  # the default of an argument that has none


@dataclass(frozen=True)
class Argument:
    """One argument of a component: its name, its type as annotated, and its default (`REQUIRED` if it has none)."""

    name: str
    annotation: Any
    default: Any = REQUIRED
    shared: bool = False  # taken by the whole table, not by this factory

    @property
    def required(self) -> bool:
        """Whether a spec must give it."""
        return self.default is REQUIRED


@dataclass(frozen=True)
class Entry:
    """One name in a table: the factory behind it, its arguments, and the facts that its author declared."""

    name: str
    factory: Callable[..., Any]
    arguments: Mapping[str, Argument]
    primary: str | None = None  # the argument that a value standing alone means
    facts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return (inspect.getdoc(self.factory) or "").strip().split("\n", 1)[0]

    def defaults(self) -> dict[str, Any]:
        """Return the arguments that have a default, with it."""
        return {name: argument.default for name, argument in self.arguments.items() if not argument.required}


class Table(dict[str, Entry]):
    """The names that a spec may use for one `kind` of component ("optimizer"), each with its entry.

    `shared` is a function whose keyword-only parameters every entry of the table takes besides its own (weight-decay
    groups of optimizers, warm-up of schedules); whoever builds the component hands them to it. `refine` says more about
    an argument than torch's annotation does, by its name: a `Range` is added to the annotation, any other replaces it.
    `facts` names what every entry must declare, with the values to choose from.
    """

    def __init__(
        self,
        kind: str,
        *,
        shared: Callable[..., Any] | None = None,
        omit: Iterable[str] = (),
        refine: Mapping[str, Any] | None = None,
        facts: Mapping[str, tuple[Any, ...]] | None = None,
    ) -> None:
        super().__init__()
        self.facts = dict(facts or {})
        self.kind = kind
        self.omit = frozenset(omit)
        self.refine = dict(refine or {})
        self.shared = _keyword_only(shared, self.refine, shared=True) if shared else {}

    @overload
    def register(self, factory: F, /) -> F: ...
    @overload
    def register(self, /, *, primary: str | None = None, **facts: Any) -> Callable[[F], F]: ...
    def register(self, factory: Any = None, /, *, primary: str | None = None, **facts: Any) -> Any:
        """Enter a factory of ours, as a decorator: its keyword-only parameters are what a spec may say.

            @losses.register(output="values", target="values")
            def log_cosh(output, target, *, scale: Positive = 1.0): ...

        `primary` names the argument that a value standing alone means; when it is not given, that is the only
        required argument, if there is exactly one. All other keywords are facts about the entry.
        """
        if factory is None:
            return lambda later: self._enter(later, _keyword_only(later, self.refine), primary, facts)
        return self._enter(factory, _keyword_only(factory, self.refine), primary, facts)

    def add(
        self,
        factory: Any,
        *,
        omit: Iterable[str] = (),
        optional: Iterable[str] = (),
        primary: str | None = None,
        signature: Callable[..., Any] | None = None,
        **facts: Any,
    ) -> Any:
        """Enter a class or function of torch as it is: every parameter but `omit` (and the table's own) may be said.

        `optional` names parameters that the run infers when the spec leaves them out. `signature` stands in for
        the factory's own where torch hides it behind `*args`.
        """
        left_out = self.omit | set(omit)
        arguments = _parameters(signature or factory, self.refine, lambda p: p.name not in left_out)
        for name in optional:
            if name in arguments and arguments[name].required:
                arguments[name] = Argument(name, arguments[name].annotation | None, None)
        return self._enter(factory, arguments, primary, facts)

    def _enter(self, factory: Any, own: dict[str, Argument], primary: str | None, facts: Mapping[str, Any]) -> Any:
        name = factory.__name__
        if name in self and not _same_definition(self[name].factory, factory):
            raise ValueError(f'the {self.kind} table has a "{name}" already')
        for fact, choices in self.facts.items():
            if facts.get(fact) not in choices:
                raise ValueError(f"{name}: say {fact}=…, one of {', '.join(map(repr, choices))}")
        arguments = {**own, **self.shared}
        required = [argument.name for argument in own.values() if argument.required]
        if primary is None and len(required) == 1:
            primary = required[0]
        if primary is not None and primary not in arguments:
            raise ValueError(f'{name}: the primary argument "{primary}" is none of {sorted(arguments)}')
        self[name] = Entry(name, factory, arguments, primary, dict(facts))
        return factory


def _same_definition(old: Any, new: Any) -> bool:
    """Tell whether a definition was run again, as notebook cells are."""
    return (old.__module__, old.__qualname__) == (new.__module__, new.__qualname__)


def _keyword_only(factory: Any, refine: Mapping[str, Any], shared: bool = False) -> dict[str, Argument]:
    return _parameters(factory, refine, lambda p: p.kind is p.KEYWORD_ONLY, shared)


def _parameters(
    factory: Any,
    refine: Mapping[str, Any],
    keep: Callable[[inspect.Parameter], bool],
    shared: bool = False,
) -> dict[str, Argument]:
    hints = type_hints(factory)
    arguments = {}
    for parameter in inspect.signature(factory).parameters.values():
        if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD) or not keep(parameter):
            continue
        annotation = hints.get(parameter.name)
        if annotation is None:  # torch leaves some parameters bare: their default says the type
            annotation = type(parameter.default) if parameter.default not in (REQUIRED, None) else Any
        if parameter.name in refine:
            said = refine[parameter.name]
            annotation = Annotated[annotation, said] if isinstance(said, Range) else said
        arguments[parameter.name] = Argument(parameter.name, annotation, parameter.default, shared)
    return arguments


def type_hints(factory: Any) -> dict[str, Any]:
    """Return the resolved annotations of a function, a class's `__init__`, or a dataclass, `Annotated` kept."""
    target = factory.__init__ if inspect.isclass(factory) else inspect.unwrap(factory)
    return typing.get_type_hints(target, include_extras=True)
