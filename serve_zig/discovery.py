"""The application of a folder, found by reading its sources; nothing is imported or run.

Two steps: each file is parsed into what its top level defines (``_Module``), then the definitions
are told apart, across files where one imports another's, and become candidates with a score.
"""

from __future__ import annotations

import ast
import os
import warnings
from keyword import iskeyword

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    Scope = dict[str, list[ast.expr]]

_FILES_MAX = 4000
_FILE_BYTES_MAX = 1 << 20
_DEPTH_MAX = 8
# How often a name may lead to another one until it counts as unknown.
_HOPS_MAX = 8

_FOLDERS_PASSED_OVER = frozenset(
    {"__pycache__", "node_modules", "site-packages", "dist-packages", "build", "dist", "migrations"}
)

# What a call makes, by the full name of what is called.
_WSGI = {
    "apiflask.APIFlask": "a Flask application (APIFlask)",
    "bottle.Bottle": "a Bottle application",
    "bottle.app": "a Bottle application",
    "bottle.default_app": "a Bottle application",
    "a2wsgi.ASGIMiddleware": "an ASGI application behind a2wsgi",
    "django.core.handlers.wsgi.WSGIHandler": "a Django application",
    "django.core.wsgi.get_wsgi_application": "a Django application",
    "falcon.API": "a Falcon application",
    "falcon.App": "a Falcon application",
    "flask.Flask": "a Flask application",
    "flask_openapi3.OpenAPI": "a Flask application (OpenAPI)",
    "pyramid.config.Configurator.make_wsgi_app": "a Pyramid application",
    "socketio.WSGIApp": "a Socket.IO application",
    "werkzeug.middleware.dispatcher.DispatcherMiddleware": "several applications of Werkzeug",
    "whitenoise.WhiteNoise": "an application behind WhiteNoise",
}
_ASGI = {
    "asgiref.wsgi.WsgiToAsgi": "a WSGI application made an ASGI one",
    "a2wsgi.WSGIMiddleware": "a WSGI application made an ASGI one",
    "blacksheep.Application": "a BlackSheep application",
    "channels.routing.ProtocolTypeRouter": "a Django Channels application",
    "connexion.AsyncApp": "a Connexion application",
    "connexion.FlaskApp": "a Connexion application",
    "django.core.asgi.get_asgi_application": "a Django application, its ASGI side",
    "falcon.asgi.App": "a Falcon application for ASGI",
    "fastapi.FastAPI": "a FastAPI application",
    "litestar.Litestar": "a Litestar application",
    "quart.Quart": "a Quart application",
    "robyn.Robyn": "a Robyn application",
    "sanic.Sanic": "a Sanic application",
    "socketio.ASGIApp": "a Socket.IO application for ASGI",
    "starlette.applications.Starlette": "a Starlette application",
    "uvicorn.middleware.wsgi.WSGIMiddleware": "a WSGI application made an ASGI one",
}
# An attribute of what a call makes that is an application, where the object itself is none.
_HOLDERS = {"dash.Dash": ("server", "the Flask application of a Dash one")}

# How the classes are called that take an application and are one.
_MIDDLEWARES = ("Middleware", "Fix", "Fixer", "Wrapper", "Proxied", "DebuggedApplication", "Sentry")

_FACTORY_WORDS = ("app", "wsgi", "server", "factory", "main")

_SCORE_KIND = {"instance": 50, "factory": 45, "callable": 40}
_SCORE_STEM = {"wsgi": 30, "app": 12, "application": 12, "main": 12, "server": 10, "__init__": 10}
_SCORE_NAME = {"application": 10, "app": 10, "wsgi_app": 8, "wsgi": 8, "server": 6, "create_app": 5}
_SCORE_FOLDER_LEVEL = -4
_SCORE_BESIDE = -40
_BESIDE = frozenset(
    {"test", "tests", "testing", "example", "examples", "docs", "doc", "benchmarks", "scripts"}
)


class Candidate:
    """An application that was found. ``file`` is relative to the folder, ``directory`` absolute."""

    __slots__ = ("directory", "file", "is_asgi", "line", "score", "target", "unusable", "what")

    def __init__(
        self, target: str, directory: str, file: str, line: int, found: _Found, score: int
    ) -> None:
        self.target = target
        self.directory = directory
        self.file = file
        self.line = line
        self.what = found.what
        self.is_asgi = found.is_asgi
        self.unusable = found.unusable
        self.score = score

    @classmethod
    def given(cls, target: str, directory: str) -> Candidate:
        """Return an application that the user names and no file shows."""
        return cls(target, directory, "", 0, _Found("instance", "an application", False), 0)


class Search:
    """What a folder holds: candidates, best first, and the files that could not be read."""

    __slots__ = ("candidates", "is_cut", "unreadable")

    def __init__(self) -> None:
        self.candidates: list[Candidate] = []
        self.unreadable: list[str] = []
        self.is_cut = False


class _Found:
    """What a definition is. ``kind`` is instance, factory or callable."""

    __slots__ = ("is_asgi", "kind", "unusable", "what")

    def __init__(self, kind: str, what: str, is_asgi: bool, unusable: str = "") -> None:
        self.kind = kind
        self.what = what
        self.is_asgi = is_asgi
        self.unusable = unusable


def search(folder: str) -> Search:
    """Return the applications of ``folder`` and the folders below it."""
    result = Search()
    modules: dict[tuple[str, str], _Module] = {}
    for path in _python_files(folder, result):
        try:
            with open(path, "rb") as stream:
                source = stream.read(_FILE_BYTES_MAX + 1)
            tree = _parse(source) if len(source) <= _FILE_BYTES_MAX else None
        except (OSError, SyntaxError, ValueError, RecursionError, MemoryError) as error:
            line = getattr(error, "lineno", None)
            place = os.path.relpath(path, folder) + (f":{line}" if line else "")
            result.unreadable.append(f"{place}: {getattr(error, 'msg', None) or error}")
            continue
        if tree is not None:
            module = _Module(path, tree, folder)
            modules.setdefault((module.directory, module.name), module)
    reader = _Reader(modules)
    for module in modules.values():
        result.candidates += _candidates(module, reader, folder)
    result.candidates.sort(key=lambda one: (-one.score, one.target))
    return result


def find_directory(folder: str, module: str) -> str | None:
    """Return the directory from which ``module`` can be imported: the folder or one below it."""
    parts = os.path.join(*module.split("."))
    for directory in (folder, *(entry for entry in _subfolders(folder))):
        if os.path.isfile(os.path.join(directory, f"{parts}.py")):
            return directory
        if os.path.isfile(os.path.join(directory, parts, "__init__.py")):
            return directory
    return None


def _subfolders(folder: str) -> list[str]:
    with os.scandir(folder) as entries:
        return sorted(entry.path for entry in entries if entry.is_dir() and _is_searched(entry))


def _is_searched(entry: os.DirEntry[str]) -> bool:
    name = entry.name
    is_environment = os.path.exists(os.path.join(entry.path, "pyvenv.cfg"))
    return not (name.startswith(".") or name in _FOLDERS_PASSED_OVER or is_environment)


def _python_files(folder: str, result: Search) -> Iterator[str]:
    """Yield the sources, those of a folder before those below it; links are not followed."""
    folders = [(folder, 0)]
    count = 0
    while folders:
        current, depth = folders.pop(0)
        try:
            with os.scandir(current) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError:
            continue
        for entry in entries:
            if entry.name.endswith(".py") and entry.is_file():
                if count == _FILES_MAX:
                    result.is_cut = True
                    return
                count += 1
                yield entry.path
            elif entry.is_dir(follow_symlinks=False) and _is_searched(entry):
                if depth < _DEPTH_MAX:
                    folders.append((entry.path, depth + 1))
                else:
                    result.is_cut = True


def _parse(source: bytes) -> ast.Module:
    with warnings.catch_warnings():
        # Of the user's file: an invalid escape, say.
        warnings.simplefilter("ignore")
        return ast.parse(source)


class _Module:
    """The top level of one file."""

    __slots__ = ("assigned", "directory", "file", "functions", "imported", "name", "path", "types")

    def __init__(self, path: str, tree: ast.Module, folder: str) -> None:
        self.path = path
        self.file = os.path.relpath(path, folder)
        # Each by the name that it has here, with all that was assigned to it, in order.
        self.imported: dict[str, tuple[str, int]] = {}
        self.assigned: Scope = {}
        self.functions: dict[str, ast.FunctionDef | ast.AsyncFunctionDef] = {}
        self.types: dict[str, ast.ClassDef] = {}
        self.directory = _import_directory(path, tree, folder)
        self.name = _module_name(path, self.directory)
        for statement in _top_level(tree.body):
            self._bind(statement)

    @property
    def package(self) -> str:
        """What a relative import is relative to."""
        if os.path.basename(self.path) == "__init__.py":
            return self.name
        return self.name.rpartition(".")[0]

    def _bind(self, statement: ast.stmt) -> None:
        match statement:
            case ast.Import(names=names):
                for alias in names:
                    bound = alias.asname or alias.name.partition(".")[0]
                    origin = alias.name if alias.asname else bound
                    self.imported[bound] = (origin, statement.lineno)
            case ast.ImportFrom(module=module, names=names, level=level):
                base = _absolute(module or "", level, self.package)
                for alias in names:
                    name = f"{base}.{alias.name}" if base else alias.name
                    self.imported[alias.asname or alias.name] = (name, statement.lineno)
            case ast.Assign(targets=targets, value=value):
                for target in targets:
                    if isinstance(target, ast.Name):
                        self.assigned.setdefault(target.id, []).append(value)
            case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                self.assigned.setdefault(name, []).append(value)
            case ast.FunctionDef() | ast.AsyncFunctionDef():
                self.functions[statement.name] = statement
            case ast.ClassDef():
                self.types[statement.name] = statement


def _top_level(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements that run when the module is imported, those in blocks included."""
    for statement in body:
        match statement:
            case ast.If(test=test):
                if not _is_main_guard(test):
                    yield from _top_level(statement.body)
                yield from _top_level(statement.orelse)
            case ast.Try():
                handlers = [one for handler in statement.handlers for one in handler.body]
                blocks = (statement.body, handlers, statement.orelse, statement.finalbody)
                for block in blocks:
                    yield from _top_level(block)
            case ast.With():
                yield from _top_level(statement.body)
            case _:
                yield statement


def _is_main_guard(test: ast.expr) -> bool:
    return any(isinstance(one, ast.Name) and one.id == "__name__" for one in ast.walk(test))


def _absolute(module: str, level: int, package: str) -> str:
    if not level:
        return module
    parts = package.split(".") if package else []
    kept = parts[: len(parts) - (level - 1)]
    return ".".join([*kept, *([module] if module else [])])


def _import_directory(path: str, tree: ast.Module, folder: str) -> str:
    """Return the directory that must be on sys.path for the file to find what it imports."""
    directory = os.path.dirname(path)
    package_parent = directory
    while os.path.isfile(os.path.join(package_parent, "__init__.py")):
        parent = os.path.dirname(package_parent)
        if parent == package_parent:
            break
        package_parent = parent
    is_package_above = folder.startswith(package_parent.rstrip(os.sep) + os.sep)
    is_part = os.path.basename(path) == "__init__.py" or _imports_relatively(tree)
    default = package_parent if is_part or not is_package_above else folder
    # A folder without an __init__.py may be a package all the same, and one with it may be none:
    # the imports tell.
    names = set(_absolute_imports(tree))
    candidates = [package_parent if is_part else directory]
    while candidates[-1] not in (folder, os.path.dirname(candidates[-1])) and not (
        candidates[-1] == package_parent and is_package_above
    ):
        candidates.append(os.path.dirname(candidates[-1]))
    counts = {candidate: _resolved(candidate, names, path) for candidate in candidates}
    best = max(candidates, key=lambda one: (counts[one], one == default))
    return best if counts[best] > counts.get(default, 0) else default


def _imports_relatively(tree: ast.Module) -> bool:
    return any(isinstance(node, ast.ImportFrom) and node.level for node in ast.walk(tree))


def _absolute_imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(module), level=0):
                yield module
            case ast.Call(args=[ast.Constant("DJANGO_SETTINGS_MODULE"), ast.Constant(str(name))]):
                yield name


def _resolved(directory: str, names: set[str], path: str) -> int:
    count = 0
    for name in names:
        place = os.path.join(directory, *name.split("."))
        is_itself = f"{place}.py" == path
        if not is_itself and (os.path.isfile(f"{place}.py") or os.path.isdir(place)):
            count += 1
    return count


def _module_name(path: str, directory: str) -> str:
    parts = os.path.relpath(path, directory).removesuffix(".py").split(os.sep)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    return ".".join(parts)


class _Reader:
    """Tells what an expression is, through names, assignments and other files.

    A ``scope`` holds the names of a function, and what a name was before the assignment that is
    looked at, as in ``app = ProxyFix(app)``. ``hops`` ends what leads in circles.
    """

    def __init__(self, modules: dict[tuple[str, str], _Module]) -> None:
        self._modules = modules

    def expression(
        self, value: ast.expr, module: _Module, scope: Scope, hops: int = 0
    ) -> _Found | None:
        """Return what ``value`` is, None where it is no application."""
        if hops > _HOPS_MAX:
            return None
        match value:
            case ast.Name(id=name):
                return self.name(name, module, scope, hops + 1)
            case ast.Attribute():
                return self._attribute(value, module, scope, hops + 1)
            case ast.Call(func=called, args=arguments):
                made = self._call(called, module, scope, hops + 1)
                if made is None and arguments and _wraps(called, arguments[0], scope):
                    made = self.expression(arguments[0], module, scope, hops + 1)
                return _as_instance(made)
            case ast.IfExp(body=body, orelse=orelse):
                return self.expression(body, module, scope, hops + 1) or self.expression(
                    orelse, module, scope, hops + 1
                )
        return None

    def name(self, name: str, module: _Module, scope: Scope, hops: int = 0) -> _Found | None:
        """Return what a name is bound to."""
        if hops > _HOPS_MAX:
            return None
        values = scope.get(name, module.assigned.get(name, []))
        if values:
            before = {**scope, name: values[:-1]}
            found = self.expression(values[-1], module, before, hops + 1)
            return found or self.name(name, module, before, hops + 1)
        if name in module.functions:
            return _callable(module.functions[name])
        if name in module.types:
            return _callable_type(module.types[name])
        if name in module.imported:
            return self._elsewhere(module.imported[name][0], module, hops + 1)
        return None

    def factory(self, function: ast.FunctionDef, module: _Module, hops: int = 0) -> _Found | None:
        """Return what a function returns, if that is an application."""
        scope: Scope = {}
        returned: list[ast.expr] = []
        for node in _own_nodes(function):
            match node:
                case ast.Assign(targets=targets, value=value):
                    for target in targets:
                        if isinstance(target, ast.Name):
                            scope.setdefault(target.id, []).append(value)
                case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                    scope.setdefault(name, []).append(value)
                case ast.Return(value=ast.expr() as value):
                    returned.append(value)
        for value in returned:
            found = self.expression(value, module, scope, hops + 1)
            # A view, too, returns what can be called with environ and start_response.
            is_named_so = any(word in function.name.lower() for word in _FACTORY_WORDS)
            if found is not None and found.kind == "instance" and is_named_so:
                needed = _needed_arguments(function.args)
                unusable = f"it needs arguments: {', '.join(needed)}" if needed else ""
                return _Found("factory", found.what, found.is_asgi, unusable)
        return None

    def _attribute(
        self, value: ast.Attribute, module: _Module, scope: Scope, hops: int
    ) -> _Found | None:
        held, what = _HOLDERS.get(self._maker(value.value, module, scope), ("", ""))
        if held == value.attr:
            return _Found("instance", what, is_asgi=False)
        return self._elsewhere(self._dotted(value, module), module, hops)

    def _call(self, called: ast.expr, module: _Module, scope: Scope, hops: int) -> _Found | None:
        """Return what calling ``called`` makes."""
        if hops > _HOPS_MAX:
            return None
        match called:
            case ast.Name(id=name) if name in module.functions:
                function = module.functions[name]
                if isinstance(function, ast.AsyncFunctionDef):
                    return None
                return self.factory(function, module, hops + 1)
            case ast.Name(id=name) if name in module.types:
                return self._instance(module.types[name], module, hops + 1)
            case ast.Attribute(value=holder, attr=attribute):
                made = f"{self._maker(holder, module, scope)}.{attribute}"
                if made in _WSGI:
                    return _Found("instance", _WSGI[made], is_asgi=False)
        dotted = self._dotted(called, module)
        known = _known(dotted)
        if known is not None:
            return known
        other, rest = self._module_of(dotted, module)
        return self._call(ast.Name(rest), other, {}, hops + 1) if other is not None else None

    def _instance(self, definition: ast.ClassDef, module: _Module, hops: int) -> _Found | None:
        for member in definition.body:
            match member:
                case ast.FunctionDef(name="__call__") | ast.AsyncFunctionDef(name="__call__"):
                    found = _callable(member, skip=1)
                    if found is not None:
                        return found
        for base in definition.bases:
            found = self._call(base, module, {}, hops + 1)
            if found is not None:
                return found
        return None

    def _maker(self, value: ast.expr, module: _Module, scope: Scope) -> str:
        """Return the full name of what was called to make ``value``; empty where unknown."""
        values = [value]
        if isinstance(value, ast.Name):
            values = scope.get(value.id) or module.assigned.get(value.id) or values
        made = [self._dotted(one.func, module) for one in values if isinstance(one, ast.Call)]
        return next((one for one in made if one), "")

    def _dotted(self, value: ast.expr, module: _Module) -> str:
        """Return the full name that ``value`` spells, through the module's imports."""
        match value:
            case ast.Name(id=name):
                return module.imported.get(name, ("", 0))[0]
            case ast.Attribute(value=holder, attr=attribute):
                base = self._dotted(holder, module)
                return f"{base}.{attribute}" if base else ""
        return ""

    def _elsewhere(self, dotted: str, importer: _Module, hops: int) -> _Found | None:
        other, rest = self._module_of(dotted, importer)
        return self.name(rest, other, {}, hops + 1) if other is not None else None

    def _module_of(self, dotted: str, importer: _Module) -> tuple[_Module | None, str]:
        """Return the file that defines a name, and the name in it."""
        module, _, name = dotted.rpartition(".")
        return self._modules.get((importer.directory, module)), name


def _known(dotted: str) -> _Found | None:
    if dotted in _WSGI:
        return _Found("instance", _WSGI[dotted], is_asgi=False)
    if dotted in _ASGI:
        return _Found("instance", _ASGI[dotted], is_asgi=True)
    # A class may be imported from where it is defined: flask.app.Flask.
    first, last = dotted.partition(".")[0], dotted.rpartition(".")[2]
    for table, is_asgi in ((_ASGI, True), (_WSGI, False)):
        if f"{first}.{last}" in table and last[:1].isupper() and ".asgi" not in dotted:
            return _Found("instance", table[f"{first}.{last}"], is_asgi)
    return None


def _as_instance(found: _Found | None) -> _Found | None:
    return found and _Found("instance", found.what, found.is_asgi)


def _wraps(called: ast.expr, argument: ast.expr, scope: Scope) -> bool:
    """Return whether a call looks like a middleware around an application.

    ProxyFix(app) does, and app = Something(app), and Something(create_app()), which would leave
    nobody else with the application; db = SQLAlchemy(app) does not.
    """
    name = _last_name(called)
    is_same = isinstance(argument, ast.Name) and argument.id in scope
    is_made_here = isinstance(argument, ast.Call)
    return name.endswith(_MIDDLEWARES) or ((is_same or is_made_here) and name[:1].isupper())


def _last_name(value: ast.expr) -> str:
    match value:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _callable(function: ast.FunctionDef | ast.AsyncFunctionDef, skip: int = 0) -> _Found | None:
    """Return whether the signature is that of an application; ``skip`` is 1 for a method."""
    arguments = [one.arg for one in (*function.args.posonlyargs, *function.args.args)][skip:]
    if isinstance(function, ast.AsyncFunctionDef):
        if arguments[:3] == ["scope", "receive", "send"]:
            return _Found("callable", "an ASGI application", is_asgi=True)
        return None
    if len(arguments) == 2 and arguments[1].lstrip("_") in ("start_response", "startresponse"):
        return _Found("callable", "a WSGI application", is_asgi=False)
    return None


def _callable_type(definition: ast.ClassDef) -> _Found | None:
    """Return whether the class itself is an application, as in PEP 3333's second example."""
    methods = {one.name: one for one in definition.body if isinstance(one, ast.FunctionDef)}
    if "__init__" in methods and "__iter__" in methods:
        return _callable(methods["__init__"], skip=1)
    return None


def _needed_arguments(arguments: ast.arguments) -> list[str]:
    positional = [*arguments.posonlyargs, *arguments.args]
    needed = positional[: len(positional) - len(arguments.defaults)]
    keyword = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    return [one.arg for one in needed] + [one.arg for one, given in keyword if given is None]


def _own_nodes(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Yield the nodes of a function in order, without those of functions inside it."""
    pending: list[ast.AST] = list(function.body)
    while pending:
        node = pending.pop(0)
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef):
            pending[:0] = ast.iter_child_nodes(node)


def _candidates(module: _Module, reader: _Reader, folder: str) -> Iterator[Candidate]:
    if not all(part.isidentifier() and not iskeyword(part) for part in module.name.split(".")):
        return
    stem = os.path.basename(module.path).removesuffix(".py")
    for name, line, found in _definitions(module, reader, stem):
        target = f"{module.name}:{name}{'()' if found.kind == 'factory' else ''}"
        score = _score(module.file, stem, name, found)
        yield Candidate(target, module.directory, module.file, line, found, score)


def _definitions(module: _Module, reader: _Reader, stem: str) -> Iterator[tuple[str, int, _Found]]:
    for name, values in module.assigned.items():
        found = reader.name(name, module, {})
        if found is not None and found.kind != "factory":
            yield name, values[-1].lineno, found
    for name, function in module.functions.items():
        found = _callable(function)
        if found is None and isinstance(function, ast.FunctionDef):
            found = reader.factory(function, module)
        if found is not None:
            yield name, function.lineno, found
    for name, definition in module.types.items():
        found = _callable_type(definition)
        if found is not None:
            yield name, definition.lineno, found
    if stem in ("wsgi", "asgi"):
        # Written for a server, and most often no more than an import of the application.
        for name, (_, line) in module.imported.items():
            found = reader.name(name, module, {})
            if found is not None and found.kind in ("instance", "callable"):
                yield name, line, found


def _score(file: str, stem: str, name: str, found: _Found) -> int:
    folders = os.path.dirname(file).split(os.sep) if os.path.dirname(file) else []
    score = _SCORE_KIND[found.kind] + _SCORE_STEM.get(stem, 0) + _SCORE_NAME.get(name, 0)
    score += _SCORE_FOLDER_LEVEL * len(folders)
    is_test = stem.startswith("test_") or stem.endswith("_test") or stem == "conftest"
    if is_test or not _BESIDE.isdisjoint(folder.lower() for folder in folders):
        score += _SCORE_BESIDE
    return score
