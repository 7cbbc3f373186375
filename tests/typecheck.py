"""The run-time type checker of the tests: beartype, with an int allowed where a float is wanted (PEP 484).

Only functions of modules and classes are checked. A function defined inside another one would be compiled anew at every
call of the outer one, which takes milliseconds: the rasteriser, which has five of them, would spend more on that than
on a small render.
"""

import ast

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook
from jaxtyping._import_hook import JaxtypingTransformer

outermost = beartype(conf=BeartypeConf(is_pep484_tower=True))


def install() -> None:
    """Check the functions and classes of every module of sdlab that is imported from now on."""
    decorate = JaxtypingTransformer.visit_FunctionDef

    def visit(self: JaxtypingTransformer, node: ast.FunctionDef) -> ast.AST | None:
        nested = any(isinstance(parent, ast.FunctionDef) for parent in self._parents)
        return self.generic_visit(node) if nested else decorate(self, node)

    JaxtypingTransformer.visit_FunctionDef = visit
    install_import_hook("sdlab", "typecheck.outermost")  # compiled modules are cached under this name
