"""Formulas in plain letters, typeset: eps_u becomes ε with a subscript u. Nothing else on the page typesets them."""

from __future__ import annotations

import html
import re

from sdlab.ui.wording import sentence

GREEK = {"eps": "epsilon", "lam": "lambda"} | {
    name: name
    for name in (
        "alpha",
        "beta",
        "gamma",
        "delta",
        "eta",
        "kappa",
        "lambda",
        "mu",
        "phi",
        "psi",
        "rho",
        "sigma",
        "tau",
        "theta",
    )
}
FUNCTIONS = ("eps", "w")  # with single capitals: their argument in parentheses is part of the symbol
HAT = "\N{COMBINING CIRCUMFLEX ACCENT}"

# a symbol with its subscript and its argument: eps_psi(camera)
SYMBOL = re.compile(r"(?<![&;])\b([A-Za-z]+)(?:_([A-Za-z0-9]+))?\b(\([^()]*\))?")


def formula(text: str) -> str:
    """Return a formula as HTML. Each summand or remark is a span that stays on one line; each symbol is a span that
    carries its plain name, so that the page can find it and show its value."""
    return " ".join(f"<span>{_symbols(html.escape(part, quote=False), named=True)}</span>" for part in summands(text))


def symbols_of(text: str) -> list[str]:
    """List the plain names of the symbols in a formula."""
    return [_name(m) for m in SYMBOL.finditer(text) if _is_symbol(m)]


def summands(text: str) -> list[str]:
    """Split a formula before each + and - and after each comma, outside parentheses, where a line may break."""
    found = [""]
    for word in text.split():
        breaks = word in ("+", "-") or found[-1].endswith(",")
        if breaks and found[-1].count("(") == found[-1].count(")"):
            found.append(word)
        else:
            found[-1] = f"{found[-1]} {word}" if found[-1] else word
    return found


def letters(symbol: str) -> tuple[str, str]:
    """Return a short symbol as Unicode letters, base and subscript: "eps_c" is ("ε", "c"), "eps^" has a hat."""
    base, _, subscript = symbol.partition("_")
    plain = base.removesuffix("^")
    return _letter(plain) + (HAT if base != plain else ""), _letter(subscript)


def prose(text: str) -> str:
    """Return a sentence as escaped HTML in which psi and eps_c look as they do in formulas."""

    def symbol(m: re.Match[str]) -> str:
        return _symbols(m[0])

    names = "|".join(sorted(GREEK, key=len, reverse=True))
    return re.sub(rf"\b(?:{names})(?:_[a-z])?\b", symbol, html.escape(sentence(text)))


def _is_function(base: str) -> bool:
    return base in FUNCTIONS or (len(base) == 1 and base.isupper())


def _name(m: re.Match[str]) -> str:
    return m[0] if _is_function(m[1]) else m[0].removesuffix(m[3] or "")


def _is_symbol(m: re.Match[str]) -> bool:
    return m[1] in GREEK or len(m[1]) == 1 or m[1] == "noise"


def _symbols(escaped: str, named: bool = False) -> str:
    """Typeset the symbols in escaped text, and each minus as wide as a plus. With `named` each symbol is a span that
    carries its plain name."""

    def letter(base: str, subscript: str | None) -> str:
        shown = f"<i>{_greek(base)}</i>" if base in GREEK or len(base) == 1 else base
        return shown + (f"<sub>{_greek(subscript)}</sub>" if subscript else "")

    def word(m: re.Match[str]) -> str:
        function, argument = _is_function(m[1]), m[3] or ""
        inside = ""
        if argument:
            inside = f"({SYMBOL.sub(word, argument[1:-1]) if function else _symbols(argument[1:-1], named)})"
        if named and _is_symbol(m):
            name = html.escape(html.unescape(_name(m)), quote=True)
            own, rest = (inside, "") if function else ("", inside)
            return f'<span class="symbol" data-symbol="{name}">{letter(m[1], m[2])}{own}</span>{rest}'
        return letter(m[1], m[2]) + inside

    shown = SYMBOL.sub(word, escaped).replace("^2", "\N{SUPERSCRIPT TWO}")
    return re.sub(r"(?<!\S)- ", "&minus; ", shown)


def _greek(name: str) -> str:
    return f"&{GREEK[name]};" if name in GREEK else name


def _letter(name: str) -> str:
    return html.unescape(_greek(name))
