"""Rules over an episode's keys, as text: ``norm(object[:3] - goal) < 0.02``. Parsed here, never executed as Python.

Every name is a key, (T, *shape), or ``step`` (T,), the number of the step. ``x[i]`` and ``x[a:b]`` choose among the
values of a step, not among steps. Operators are numpy's, ``and``, ``or`` and ``not`` work step by step.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from data.errors import ConfigError, nearest


def _over_values(f: Callable[..., np.ndarray]) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: f(x.reshape(len(x), -1), axis=1)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "abs": np.abs,
    "sqrt": np.sqrt,
    "exp": np.exp,
    "norm": _over_values(np.linalg.norm),  # of a step's values, as are the next five
    "sum": _over_values(np.sum),
    "min": _over_values(np.min),
    "max": _over_values(np.max),
    "any": _over_values(np.any),
    "all": _over_values(np.all),
    "first": lambda x: np.broadcast_to(x[:1], x.shape),  # the episode's first step, at every step
    "last": lambda x: np.broadcast_to(x[-1:], x.shape),
    "ever": lambda x: np.logical_or.accumulate(x.astype(bool), axis=0),  # at this step or before
}
_BINARY: dict[type[ast.AST], Callable[..., Any]] = {
    ast.Add: np.add,
    ast.Sub: np.subtract,
    ast.Mult: np.multiply,
    ast.Div: np.true_divide,
    ast.Pow: np.power,
    ast.Mod: np.mod,
    ast.Lt: np.less,
    ast.LtE: np.less_equal,
    ast.Gt: np.greater,
    ast.GtE: np.greater_equal,
    ast.Eq: np.equal,
    ast.NotEq: np.not_equal,
    ast.And: np.logical_and,
    ast.Or: np.logical_or,
}
_UNARY: dict[type[ast.AST], Callable[..., Any]] = {
    ast.USub: lambda x: np.multiply(x, -1),
    ast.UAdd: np.asarray,
    ast.Not: np.logical_not,
}


class Rule:
    """``text`` over keys.

    Attributes:
        text: as given.
        keys: that it reads.
    """

    def __init__(self, text: str, known: Mapping[str, tuple[int, ...]]) -> None:
        """Parses.

        Args:
            text: the rule.
            known: {key: shape of one time step} that it may name.

        Raises:
            ConfigError: no such expression, key or function; says which.
        """
        self.text = text
        try:
            self._tree = ast.parse(text, mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError) as e:
            raise ConfigError(f"The rule '{text}' cannot be read: {e}.") from None
        named = {n.func for n in ast.walk(self._tree) if isinstance(n, ast.Call)}
        names = [n.id for n in ast.walk(self._tree) if isinstance(n, ast.Name) and n not in named]
        for name in names:
            if name not in known and name != "step":
                raise ConfigError(f"The rule '{text}': there is no key '{name}'. {nearest(name, [*known, 'step'])}")
        self.keys = sorted({*names} - ({"step"} - {*known}))
        self._shapes = {k: known[k] for k in self.keys}

    def __call__(self, rows: Mapping[str, np.ndarray]) -> np.ndarray:
        """One value for each step, (T,).

        Args:
            rows: {key: (T, *shape)} of one episode, at least ``keys``.

        Raises:
            ConfigError: shapes that do not go together, or more than a value for each step; says which.
        """
        n = len(next(iter(rows.values())))
        with np.errstate(all="ignore"):
            value = np.asarray(self._value(self._tree, {"step": np.arange(n), **rows}, n))
        if value.ndim == 0:
            value = np.full(n, value)
        if value.shape != (n,):
            raise ConfigError(
                f"The rule '{self.text}' gives {_steps(value)}, expected (T,): choose one value with x[i], or put them "
                f"together with norm, sum, min, max, any or all. Shapes of a step: {self._shapes}."
            )
        return value

    def _value(self, node: ast.AST, rows: Mapping[str, np.ndarray], n: int) -> Any:
        def of(part: ast.AST) -> Any:
            return self._value(part, rows, n)

        if isinstance(node, ast.Constant) and isinstance(node.value, (bool, int, float)):
            return node.value if isinstance(node.value, bool) else float(node.value)
        if isinstance(node, ast.Name):
            x = rows[node.id]
            return x if x.dtype.kind in "bf" else x.astype(np.float64)  # unsigned numbers would wrap around
        if isinstance(node, ast.BinOp) and type(node.op) in _BINARY:
            return self._apply(node, _BINARY[type(node.op)], of(node.left), of(node.right))
        if isinstance(node, ast.UnaryOp) and type(node.op) in _UNARY:
            return self._apply(node, _UNARY[type(node.op)], of(node.operand))
        if isinstance(node, ast.BoolOp):
            return self._folded(node, _BINARY[type(node.op)], [of(v) for v in node.values])
        if isinstance(node, ast.Compare) and all(type(op) in _BINARY for op in node.ops):
            sides = [of(side) for side in (node.left, *node.comparators)]
            pairs = zip(node.ops, sides[:-1], sides[1:], strict=True)
            return self._folded(node, np.logical_and, [self._apply(node, _BINARY[type(o)], a, b) for o, a, b in pairs])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id not in FUNCTIONS:
                raise self._wrong(node.func, nearest(node.func.id, list(FUNCTIONS)))
            if len(node.args) != 1 or node.keywords:
                raise self._wrong(node, f"'{node.func.id}' takes one value.")
            x = np.asarray(of(node.args[0]))
            return self._apply(node, FUNCTIONS[node.func.id], np.full(n, x) if x.ndim == 0 else x)
        if isinstance(node, ast.Subscript):
            return self._chosen(node, np.asarray(of(node.value)))
        raise self._wrong(node, f"only keys, numbers, operators, x[i] and {', '.join(FUNCTIONS)} can be used.")

    def _folded(self, node: ast.AST, f: Callable[..., Any], values: list[Any]) -> Any:
        out = values[0]
        for value in values[1:]:
            out = self._apply(node, f, out, value)
        return out

    def _apply(self, node: ast.AST, f: Callable[..., Any], *values: Any) -> Any:
        widest = max((np.ndim(v) for v in values), default=0)
        aligned = []
        for value in values:  # (T,) with (T, D): a value for each step counts for all of the step's
            x = np.asarray(value)
            if 0 < x.ndim < widest:
                x = x.reshape(*x.shape[:1], *(1,) * (widest - x.ndim), *x.shape[1:])
            aligned.append(x)
        try:
            return f(*aligned)
        except ValueError:
            shapes = " and ".join(_steps(np.asarray(v)) for v in values)
            raise self._wrong(node, f"{shapes} do not go together.") from None
        except TypeError as e:
            raise self._wrong(node, f"{' '.join(str(e).split())}.") from None

    def _chosen(self, node: ast.Subscript, x: np.ndarray) -> np.ndarray:
        def whole(part: ast.AST | None) -> int | None:
            if part is None:
                return None
            try:
                number = ast.literal_eval(part)
            except ValueError:
                number = None
            if not isinstance(number, int) or isinstance(number, bool):
                raise self._wrong(node, "x[i] and x[a:b] take whole numbers.")
            return number

        at = node.slice
        wanted = slice(whole(at.lower), whole(at.upper)) if isinstance(at, ast.Slice) and at.step is None else whole(at)
        if x.ndim < 2 or (isinstance(wanted, int) and not -x.shape[1] <= wanted < x.shape[1]):
            raise self._wrong(node, f"{_steps(x)} has no such value.")
        return x[:, wanted]

    def _wrong(self, node: ast.AST, why: str) -> ConfigError:
        return ConfigError(f"The rule '{self.text}', at '{ast.unparse(node)}': {why} Shapes of a step: {self._shapes}.")


def _steps(x: np.ndarray) -> str:
    return f"(T, {', '.join(map(str, x.shape[1:]))})".replace(", )", ",)") if x.ndim else "a number"
