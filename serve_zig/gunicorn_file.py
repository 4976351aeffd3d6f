"""gunicorn.conf.py, read: what each setting is, as far as the source tells it.

gunicorn executes the file. Here it is evaluated without that: constants, arithmetic, strings, lists
and reads of the environment, which become variables of serve.toml. Whatever depends on anything
else is ``Unknown``. ``execute`` runs the file in a process of its own instead, as gunicorn does.
"""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys

from serve_zig.errors import ConfigError
from serve_zig.interpolation import escape
from serve_zig.migration import Template, Unknown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Values = dict[str, object]

_EXECUTION_SECONDS = 30.0

# Bounds on what the evaluator may be made to compute.
_NUMBER_MAX = 10**15
_LENGTH_MAX = 100_000

_CONSTANTS = {"ssl.CERT_NONE": 0, "ssl.CERT_OPTIONAL": 1, "ssl.CERT_REQUIRED": 2}


class Function:
    """A function that the file defines: a hook, most often."""

    __slots__ = ("name",)

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return f"the function {self.name}"


class _UnknownError(Exception):
    """An expression cannot be evaluated."""


# What an expression may raise, here as where it is executed.
_FAILURES = (
    _UnknownError,
    ArithmeticError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    RecursionError,
)


def evaluate(file: str) -> Values:
    """Return the names that the file defines, evaluated without executing it."""
    source = _read(file)
    try:
        tree = ast.parse(source, file)
    except (SyntaxError, ValueError, RecursionError) as error:
        line = getattr(error, "lineno", None)
        place = f"{file}:{line}" if line else file
        what = getattr(error, "msg", None) or error
        raise ConfigError(f"{place}: not valid Python: {what}; mend the file") from None
    evaluator = _Evaluator()
    evaluator.run(tree.body)
    return evaluator.variables


def execute(file: str) -> Values:
    """Return the names that the file defines, executed by this Python in a process of its own."""
    _read(file)
    read_end, write_end = os.pipe()
    try:
        child = subprocess.Popen(
            [sys.executable, "-c", _EXECUTOR, os.path.abspath(file), str(write_end)],
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            pass_fds=[write_end],
        )
    finally:
        os.close(write_end)
    with child, open(read_end, "rb") as stream:
        try:
            status = child.wait(_EXECUTION_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            raise ConfigError(
                f"{file}: has not ended within {_EXECUTION_SECONDS:g} s; leave out --execute"
            ) from None
        answer = stream.read()
    if status != 0 or not answer:
        raise ConfigError(
            f"{file}: could not be executed (exit status {status}); mend it, or leave out --execute"
        )
    return {name: _decoded(value) for name, value in json.loads(answer).items()}


# Written to a file of the pipe's size at most: what does not fit is not a setting.
_EXECUTOR = """
import importlib.util, json, os, sys, types
file, write_end = sys.argv[1], int(sys.argv[2])
sys.argv[:] = [file]
sys.path.insert(0, os.getcwd())
spec = importlib.util.spec_from_file_location("__config__", file)
module = importlib.util.module_from_spec(spec)
sys.modules["__config__"] = module
spec.loader.exec_module(module)
found = {}
for name, value in vars(module).items():
    if name.startswith("__") or isinstance(value, types.ModuleType):
        continue
    if callable(value):
        found[name] = {"function": getattr(value, "__name__", name)}
        continue
    try:
        text = json.dumps({"value": list(value) if isinstance(value, set) else value})
        found[name] = json.loads(text)
    except (TypeError, ValueError):
        found[name] = {"unknown": repr(value)[:200]}
text = json.dumps(found).encode()
if len(text) > 60000:
    sys.exit("the settings are too long")
os.write(write_end, text)
"""


def _decoded(value: dict[str, object]) -> object:
    if "function" in value:
        return Function(str(value["function"]))
    return Unknown(str(value["unknown"])) if "unknown" in value else value["value"]


def _read(file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read()
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ConfigError(f"{file}: cannot be read ({reason}); name the config file") from None


class _Evaluator:
    """Evaluates the top level of a module. ``variables`` holds what its names are bound to."""

    def __init__(self) -> None:
        self.variables: Values = {}
        self._imported: dict[str, str] = {}

    def run(self, body: Iterable[ast.stmt]) -> None:
        """Run statements, as far as they are understood."""
        for statement in body:
            self._run_one(statement)

    def _run_one(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    self._assign(target, value)
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                self._assign(target, value)
            case ast.AugAssign(target=ast.Name(id=name) as target, op=op, value=value):
                load = ast.copy_location(ast.Name(name, ast.Load()), target)
                self._assign(target, ast.copy_location(ast.BinOp(load, op, value), statement))
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                self.variables[name] = Function(name)
            case ast.ClassDef(name=name):
                self.variables[name] = Unknown(f"the class {name}")
            case ast.Import(names=names):
                for alias in names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    self._imported[bound] = alias.name if alias.asname else bound
            case ast.ImportFrom(module=module, names=names):
                for alias in names:
                    self._imported[alias.asname or alias.name] = f"{module}.{alias.name}"
                    self.variables.pop(alias.asname or alias.name, None)
            case ast.Expr(value=ast.Call() as call):
                self._mutate(call)
            case ast.If(test=test, body=body, orelse=orelse):
                self._branch(statement, test, body, orelse)
            case ast.Try(body=body, orelse=orelse, finalbody=finalbody):
                for block in (body, orelse, finalbody):
                    self.run(block)
            case _:
                self._forget([statement], f"set in line {statement.lineno}")

    def _assign(self, target: ast.expr, value: ast.expr) -> None:
        match target:
            case ast.Name(id=name):
                self.variables[name] = self._value(value)
            case ast.Tuple(elts=targets) | ast.List(elts=targets):
                found = self._value(value)
                if not isinstance(found, list) or len(found) != len(targets):
                    found = [Unknown(ast.unparse(value))] * len(targets)
                for one, part in zip(targets, found, strict=True):
                    if isinstance(one, ast.Name):
                        self.variables[one.id] = part
            case ast.Subscript(value=ast.Name(id=name)):
                held = self.variables.get(name)
                try:
                    index = self.expression(target.slice)
                    found = self.expression(value)
                    if not isinstance(held, dict | list) or isinstance(index, Template):
                        raise _UnknownError
                    held[index] = found  # type: ignore[call-overload]
                except (_UnknownError, TypeError, LookupError):
                    if name in self.variables:
                        self.variables[name] = Unknown(f"changed in line {target.lineno}")

    def _value(self, value: ast.expr) -> object:
        try:
            return self.expression(value)
        except _FAILURES:
            return Unknown(ast.unparse(value))

    def _mutate(self, call: ast.Call) -> None:
        """Follow ``bind.append(...)``; anything else that is called changes nothing here."""
        match call:
            case ast.Call(
                func=ast.Attribute(value=ast.Name(id=name), attr=method), args=[argument]
            ) if name in self.variables:
                held = self.variables[name]
                found = self._value(argument)
                if isinstance(held, list) and method == "append":
                    held.append(found)
                elif isinstance(held, list) and method == "extend" and isinstance(found, list):
                    held.extend(found)
                elif isinstance(held, dict) and method == "update" and isinstance(found, dict):
                    held.update(found)
                elif isinstance(held, list | dict):
                    self.variables[name] = Unknown(f"changed in line {call.lineno}")

    def _branch(
        self, statement: ast.stmt, test: ast.expr, body: list[ast.stmt], orelse: list[ast.stmt]
    ) -> None:
        try:
            condition = self._truth(self.expression(test))
        except _FAILURES:
            self._forget([*body, *orelse], f"set if {ast.unparse(test)}, line {statement.lineno}")
            return
        self.run(body if condition else orelse)

    def _forget(self, body: Iterable[ast.stmt], why: str) -> None:
        """Make unknown what statements assign that were not followed."""
        for statement in body:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    self.variables[node.id] = Unknown(why)
                elif isinstance(node, ast.FunctionDef):
                    self.variables[node.name] = Function(node.name)

    def expression(self, node: ast.expr) -> object:
        """Return the value of an expression; raise _UnknownError."""
        match node:
            case ast.Constant(value=value):
                if isinstance(value, str | int | float | None):
                    return value
            case ast.Name(id=name):
                return self._name(name)
            case ast.List(elts=items) | ast.Tuple(elts=items) | ast.Set(elts=items):
                return [self.expression(item) for item in items]
            case ast.Dict(keys=keys, values=values):
                return self._dict(keys, values)
            case ast.UnaryOp(op=op, operand=operand):
                return self._unary(op, self.expression(operand))
            case ast.BinOp(left=left, op=op, right=right):
                return _binary(op, self.expression(left), self.expression(right))
            case ast.BoolOp(op=op, values=values):
                return self._boolean(op, values)
            case ast.Compare(left=left, ops=[op], comparators=[right]):
                return _compare(op, self.expression(left), self.expression(right))
            case ast.IfExp(test=test, body=body, orelse=orelse):
                return self.expression(body if self._truth(self.expression(test)) else orelse)
            case ast.JoinedStr(values=values):
                return _joined([self._formatted(value) for value in values])
            case ast.Subscript(value=held, slice=index):
                return self._subscript(held, index)
            case ast.Attribute():
                dotted = self._dotted(node)
                if dotted in _CONSTANTS:
                    return _CONSTANTS[dotted]
            case ast.Call():
                return self._call(node)
        raise _UnknownError

    def _name(self, name: str) -> object:
        if name == "__file__":
            raise _UnknownError
        value = self.variables.get(name, _UnknownError)
        if value is _UnknownError or isinstance(value, Unknown):
            raise _UnknownError
        return value

    def _dict(self, keys: list[ast.expr | None], values: list[ast.expr]) -> object:
        found: dict[object, object] = {}
        for key, value in zip(keys, values, strict=True):
            if key is None:
                raise _UnknownError
            found[self.expression(key)] = self.expression(value)
        return found

    def _unary(self, op: ast.unaryop, value: object) -> object:
        if isinstance(op, ast.Not):
            return not self._truth(value)
        if not isinstance(value, int | float):
            raise _UnknownError
        match op:
            case ast.USub():
                return -value
            case ast.UAdd():
                return +value
        raise _UnknownError

    def _boolean(self, op: ast.boolop, values: list[ast.expr]) -> object:
        result = self.expression(values[0])
        for node in values[1:]:
            if isinstance(result, Template) and isinstance(op, ast.Or):
                # os.environ.get("X") or "y": the variable, with a default.
                result = _with_default(result, self.expression(node))
            elif self._truth(result) == isinstance(op, ast.Or):
                return result
            else:
                result = self.expression(node)
        return result

    def _truth(self, value: object) -> bool:
        if isinstance(value, Template):
            raise _UnknownError
        return bool(value)

    def _formatted(self, node: ast.expr) -> object:
        match node:
            case ast.Constant(value=str(value)):
                return value
            case ast.FormattedValue(value=value, conversion=-1, format_spec=None):
                return self.expression(value)
        raise _UnknownError

    def _subscript(self, held: ast.expr, index: ast.expr) -> object:
        if self._dotted(held) == "os.environ":
            name = self.expression(index)
            if isinstance(name, str):
                return _variable(name)
            raise _UnknownError
        found = self.expression(held)
        if not isinstance(found, list | dict | str) or isinstance(index, ast.Slice):
            raise _UnknownError
        return found[self.expression(index)]  # type: ignore[index,call-overload]

    def _call(self, call: ast.Call) -> object:
        if call.keywords or any(isinstance(one, ast.Starred) for one in call.args):
            raise _UnknownError
        dotted = self._dotted(call.func)
        if dotted in ("os.environ.get", "os.getenv"):
            return self._environment(call.args)
        arguments = [self.expression(one) for one in call.args]
        if isinstance(call.func, ast.Name) and call.func.id not in self.variables:
            return _built_in(call.func.id, arguments)
        if isinstance(call.func, ast.Attribute) and not dotted:
            return _method(self.expression(call.func.value), call.func.attr, arguments)
        raise _UnknownError

    def _environment(self, nodes: list[ast.expr]) -> object:
        arguments = [self.expression(one) for one in nodes]
        match arguments:
            case [str(name)] | [str(name), None]:
                return _variable(name)
            case [str(name), default]:
                return _with_default(_variable(name), default)
        raise _UnknownError

    def _dotted(self, node: ast.expr) -> str:
        match node:
            case ast.Name(id=name):
                return self._imported.get(name, "")
            case ast.Attribute(value=value, attr=name):
                base = self._dotted(value)
                return f"{base}.{name}" if base else ""
        return ""


def _variable(name: str) -> Template:
    if not (name.isascii() and name.isidentifier()):
        raise _UnknownError
    return Template(f"${{{name}}}")


def _with_default(variable: Template, default: object) -> object:
    is_plain = variable.text.startswith("${") and variable.text.find("}") == len(variable.text) - 1
    if isinstance(default, bool) or not isinstance(default, str | int | float):
        raise _UnknownError
    text = str(default)
    if not is_plain or ":-" in variable.text or "}" in text or "$" in text:
        raise _UnknownError
    return Template(f"{variable.text[:-1]}:-{text}}}")


def _joined(parts: list[object]) -> object:
    if not any(isinstance(part, Template) for part in parts):
        return _bounded("".join(map(_as_text, parts)))
    return Template(
        "".join(
            part.text if isinstance(part, Template) else escape(_as_text(part)) for part in parts
        )
    )


def _as_text(value: object) -> str:
    if isinstance(value, str | int | float):
        return str(value)
    raise _UnknownError


def _bounded(value: object) -> object:
    if isinstance(value, int | float) and abs(value) > _NUMBER_MAX:
        raise _UnknownError
    if isinstance(value, str | list) and len(value) > _LENGTH_MAX:
        raise _UnknownError
    return value


def _binary(op: ast.operator, left: object, right: object) -> object:
    if isinstance(left, Template) or isinstance(right, Template):
        if isinstance(op, ast.Add):
            return _joined([left, right])
        if isinstance(op, ast.Mod) and isinstance(left, str) and left.count("%") == 1:
            before, found, after = left.partition("%s")
            if found:
                return _joined([before, right, after])
        raise _UnknownError
    if isinstance(op, ast.Add) and isinstance(left, str) and isinstance(right, str):
        return _bounded(left + right)
    if isinstance(op, ast.Add) and isinstance(left, list) and isinstance(right, list):
        return _bounded(left + right)
    if isinstance(op, ast.Mod) and isinstance(left, str):
        if any(letter in left for letter in "*.") or any(one.isdigit() for one in left):
            # No widths: "%1000000000d" is a long text.
            raise _UnknownError
        return left % (tuple(right) if isinstance(right, list) else right)
    if isinstance(left, int | float) and isinstance(right, int | float):
        operations: dict[type, Callable[[], object]] = {
            ast.Add: lambda: left + right,
            ast.Sub: lambda: left - right,
            ast.Mult: lambda: left * right,
            ast.Div: lambda: left / right,
            ast.FloorDiv: lambda: left // right,
            ast.Mod: lambda: left % right,
        }
        if type(op) in operations:
            return _bounded(operations[type(op)]())
        if isinstance(op, ast.Pow) and abs(left) <= 1024 and 0 <= right <= 16:
            power: float = left**right
            return _bounded(power)
    raise _UnknownError


def _compare(op: ast.cmpop, left: object, right: object) -> bool:
    if isinstance(left, Template) or isinstance(right, Template):
        raise _UnknownError
    match op:
        case ast.Eq():
            return left == right
        case ast.NotEq():
            return left != right
        case ast.Is():
            return left is right
        case ast.IsNot():
            return left is not right
        case ast.In() | ast.NotIn() if isinstance(right, list | dict | str):
            return (left in right) == isinstance(op, ast.In)
        case ast.Lt() | ast.Gt() | ast.LtE() | ast.GtE():
            if isinstance(left, int | float) and isinstance(right, int | float):
                outcomes = {ast.Lt: left < right, ast.Gt: left > right}
                outcomes |= {ast.LtE: left <= right, ast.GtE: left >= right}
                return outcomes[type(op)]
    raise _UnknownError


def _built_in(name: str, arguments: list[object]) -> object:
    match name, arguments:
        case (("int" | "float" | "str"), [Template() as template]):
            return template
        case "int", [str() | int() | float() as value]:
            return _bounded(int(value))
        case "float", [str() | int() | float() as value]:
            return float(value)
        case "str", [str() | int() | float() as value]:
            return str(value)
        case "bool", [value] if not isinstance(value, Template):
            return bool(value)
        case "len", [str() | list() | dict() as value]:
            return len(value)
        case (("list" | "tuple"), [list() as value]):
            return list(value)
        case (("min" | "max"), [_, *_]):
            numbers = [one for one in arguments if isinstance(one, int | float)]
            if len(numbers) == len(arguments):
                return min(numbers) if name == "min" else max(numbers)
    raise _UnknownError


def _method(holder: object, name: str, arguments: list[object]) -> object:
    if not isinstance(holder, str):
        raise _UnknownError
    if name == "format":
        before, found, after = holder.partition("{}")
        if found and len(arguments) == 1 and "{" not in before + after:
            return _joined([before, arguments[0], after])
        raise _UnknownError
    if not all(isinstance(one, str) for one in arguments):
        raise _UnknownError
    if name in ("lower", "upper", "strip", "lstrip", "rstrip", "split") and len(arguments) <= 1:
        return getattr(holder, name)(*arguments)
    raise _UnknownError
