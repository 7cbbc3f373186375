"""The run-time type checker of the tests: beartype, with an int allowed where a float is wanted (PEP 484).

beartype checks the types, and jaxtyping the shapes: within a call, an axis has one size wherever it is named. The
decorator of jaxtyping does the same, but it binds and checks the arguments of every call twice, which takes as long as
all else in a small step, most of whose hundreds of functions have no shapes.

Only functions of modules and classes are checked. A function defined inside another one would be compiled anew at every
call of the outer one, which takes milliseconds: the rasteriser, which has five of them, would spend more on that than
on a small render.
"""

import ast
import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

from beartype import BeartypeConf, beartype
from jaxtyping import AbstractArray, TypeCheckError, install_import_hook, jaxtyped
from jaxtyping._decorator import _destring_annotation
from jaxtyping._import_hook import JaxtypingTransformer, Typechecker
from jaxtyping._storage import pop_shape_memo, push_shape_memo

outermost = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))


def checked(what: Any) -> Any:
    """Return a function that checks its arguments and what it returns, or a class that does so when it is made."""
    if not inspect.isclass(what):
        return _checked(what)
    made = what.__init__
    if dataclasses.is_dataclass(what) and inspect.isfunction(made) and not hasattr(made, "__wrapped__"):
        what.__init__ = _checked(made)
    return what


def _checked(function: Callable[..., Any]) -> Callable[..., Any]:
    written = function.__annotations__
    hints = {name: _destring_annotation(hint, function.__globals__) for name, hint in written.items()}
    if not any(_has_shape(hint) for hint in hints.values()):
        return _typed(function, hints)
    if inspect.isgeneratorfunction(function):
        return jaxtyped(function, typechecker=outermost)
    typed = _typed(function, hints)

    @functools.wraps(function)
    def shaped(*args: Any, **options: Any) -> Any:
        push_shape_memo({})
        try:
            return typed(*args, **options)
        finally:
            pop_shape_memo()

    return shaped


def _typed(function: Callable[..., Any], hints: dict[str, Any]) -> Callable[..., Any]:
    """Return `function`, checked against `hints`, which are its annotations without quotes."""
    written, function.__annotations__ = function.__annotations__, hints
    try:
        found = outermost(function)
    finally:
        function.__annotations__ = written
    return found if found is function else functools.update_wrapper(found, function)


def _has_shape(hint: Any) -> bool:
    shape = inspect.isclass(hint) and issubclass(hint, AbstractArray)
    return shape or any(_has_shape(part) for part in (*get_args(hint), *(hint if isinstance(hint, list) else ())))


def install() -> None:
    """Check the functions and classes of every module of sdlab that is imported from now on."""
    decorate = JaxtypingTransformer.visit_FunctionDef

    def visit(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.AST | None:
        nested = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return self.generic_visit(node) if nested else decorate(self, node)

    JaxtypingTransformer.visit_FunctionDef = visit
    Typechecker.get_ast = lambda self: ast.parse("__import__('typecheck').checked", mode="eval").body
    install_import_hook("sdlab", "typecheck.checked")  # compiled modules are cached under this name
