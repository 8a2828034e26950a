"""The sentences that the sources say to people, found in their syntax: templates of errors."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from itertools import chain, product
from pathlib import Path

HOLE = "⟦{}⟧"
"""Stands for the value number n of a sentence."""

PLACES = {"PlanError": 0, "RunError": 0, "Undivided": 0, "Uncarried": 0, "Refusal": 1}
"""Which argument of what is called is a sentence."""


def errors_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and sentence of every error that a source raises, with holes for values.

    Reasons of layers that refuse a cut are sentences too: errors are made with them.
    """
    source = _Source(ast.parse(path.read_text("utf-8")))
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            place = PLACES.get(node.func.id, len(node.args))
            for argument in node.args[place : place + 1]:
                for sentence in source.forms(argument):
                    yield node.lineno, sentence


def texts_of(path: Path) -> list[str]:
    """Return every text that a source holds, without the values that are filled in."""
    tree = ast.parse(path.read_text("utf-8"))
    return [
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


class _Source:
    """A module's syntax, and the texts that its names and functions stand for."""

    def __init__(self, tree: ast.Module) -> None:
        self.tree = tree
        self.meant: dict[str, list[ast.expr]] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        self.meant.setdefault(f"{node.name}()", []).append(inner.value)
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.meant.setdefault(node.targets[0].id, []).append(node.value)

    def forms(self, node: ast.expr) -> list[str]:
        """Return every form that a text can take, with holes numbered from 0; none if unknown."""
        match node:
            case ast.Name(id=name):
                meant = self.meant.get(name, [])
            case ast.Call(func=ast.Name(id=name)):
                meant = self.meant.get(f"{name}()", [])
            case _:
                meant = [node]
        found = [form for each in meant if _spoken(each) for form in _forms(each)]
        return [form for form in found if any(letter.isalpha() for letter in form)]


def _forms(node: ast.expr) -> list[str]:
    """Return every form that a text can take, with holes numbered from 0."""
    found = []
    for pieces in _pieces(node):
        holes = iter(range(1000))
        found.append("".join(HOLE.format(next(holes)) if p is None else p for p in pieces))
    return list(dict.fromkeys(found))


def _pieces(node: ast.expr) -> list[list[str | None]]:
    """Return the forms of a text as lists of its words, None for a value that is filled in."""
    match node:
        case ast.Constant(value=str(value)):
            return [[value]]
        case ast.IfExp(body=body, orelse=other):
            return [*_pieces(body), *_pieces(other)]
        case ast.BoolOp(values=values):
            return [form for value in values for form in _pieces(value)]
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return [[*a, *b] for a, b in product(_pieces(left), _pieces(right))]
        case ast.JoinedStr(values=values):
            return [list(chain(*form)) for form in product(*map(_pieces, values))]
        case ast.FormattedValue(value=value) if _spoken(value):
            return _pieces(value)
        case _:
            return [[None]]


def _spoken(node: ast.expr) -> bool:
    """Return whether a value is a text of the sources, in one form or another."""
    match node:
        case ast.Constant(value=str()):
            return True
        case ast.IfExp(body=body, orelse=other):
            return _spoken(body) and _spoken(other)
        case ast.BoolOp(values=values):
            return all(map(_spoken, values))
        case ast.BinOp(left=left, op=ast.Add(), right=right):
            return _spoken(left) or _spoken(right)
        case ast.JoinedStr():
            return True
    return False
