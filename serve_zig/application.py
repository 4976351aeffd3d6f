"""The application named by ``app.target``: imported, called if it is a factory, and looked over.

Beside it the callables that run once, ``app.startup`` and ``app.shutdown``.

Each way in which that fails has its own message. Where the application's own code raised, its
traceback is shown, without the launcher's frames.
"""

from __future__ import annotations

import _thread
import importlib
import os
import sys
from types import FunctionType, MethodType

from serve_zig.application_traceback import (
    escape_controls,
    format_exception,
    has_application_frames,
    type_name,
)
from serve_zig.errors import ApplicationError, StartInterruptedError
from serve_zig.nearest import nearest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType
    from typing import Any

    from serve_zig.target import Target

    Application = Callable[..., Any]

_MESSAGE_CHARACTERS_MAX = 200

# inspect.CO_VARARGS and inspect.CO_COROUTINE; importing inspect would cost more than this module.
_TAKES_ANY_NUMBER = 0x04
_IS_COROUTINE = 0x80

_GREENLETS = ("gevent", "eventlet")

_USUAL_NAMES = ("app", "application", "wsgi_app", "create_app", "make_app")


def load(target: Target, directory: str, place: str) -> Application:
    """Return the application; ``directory`` is put first on sys.path and stays there.

    ``place`` says where ``app.target`` was written; each message begins with it. Raises
    ApplicationError.
    """
    try:
        found = _find(target, directory, place)
        if target.is_factory:
            found = _call_factory(found, target, place)
    finally:
        # Also where it raised: threads that were there before may break in any way.
        check_threads(place)
    return _check(found, target, place)


def check_threads(place: str) -> None:
    """Raise ApplicationError where threads are not the system's any more.

    A worker would be a greenlet among others on the main thread, which waits in the core.
    """
    # A debugger replaces it, too, by what starts threads.
    module = getattr(_thread.start_new_thread, "__module__", None) or ""
    if module.partition(".")[0] in _GREENLETS:
        raise ApplicationError(
            f"{place}: the application has put greenlets in the place of threads "
            "(gevent.monkey.patch_all or eventlet.monkey_patch); serve-zig runs it on threads of "
            "the system, so take that call out"
        )


def load_hook(target: Target, directory: str, place: str) -> Callable[[], object]:
    """Return the callable of ``app.startup`` or ``app.shutdown``; otherwise as ``load``."""
    found = _find(target, directory, place)
    if not callable(found):
        raise ApplicationError(
            f'{place}: "{target.text}" cannot be called, it is {_describe(found)}; name a function '
            "without arguments"
        )
    code = _code(found) or _code(type(found).__call__)
    if code is not None and code.co_flags & _IS_COROUTINE:
        raise ApplicationError(
            f'{place}: "{target.text}" is asynchronous, and there is no event loop to run it; '
            "name a plain function, for instance one that calls asyncio.run"
        )
    return found


def run_hook(hook: Callable[[], object], target: Target, place: str) -> None:
    """Call what ``load_hook`` returned; raise ApplicationError with its traceback."""
    try:
        hook()
    except (KeyboardInterrupt, StartInterruptedError):
        raise
    except SystemExit as error:
        raise ApplicationError(
            f'{place}: calling "{target.text}" ended the program with SystemExit({error.code!r})',
            detail=format_exception(error),
        ) from None
    except BaseException as error:
        raise _raised(f'calling "{target.text}"', error, place) from None


def _find(target: Target, directory: str, place: str) -> object:
    if sys.path[:1] != [directory]:
        sys.path.insert(0, directory)
    return _resolve(_import(target, directory, place), target, place)


def _import(target: Target, directory: str, place: str) -> object:
    try:
        return importlib.import_module(target.module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        is_of_target = f"{target.module}.".startswith(f"{missing}.")
        if is_of_target and not has_application_frames(error):
            raise ApplicationError(
                f"{place}: {_explain_missing(target, missing, directory, place)}"
            ) from None
        raise _raised(f'importing "{target.module}"', error, place) from None
    except (KeyboardInterrupt, StartInterruptedError):
        raise
    except SystemExit as error:
        raise ApplicationError(
            f'{place}: importing "{target.module}" ended the program with '
            f"SystemExit({error.code!r}); what a script does belongs below "
            'if __name__ == "__main__"',
            detail=format_exception(error),
        ) from None
    except BaseException as error:
        raise _raised(f'importing "{target.module}"', error, place) from None


def _resolve(module: object, target: Target, place: str) -> object:
    found, path = module, target.module
    for name in target.attribute.split("."):
        try:
            found = getattr(found, name)
        except AttributeError:
            raise ApplicationError(f"{place}: {_explain_no_attribute(found, path, name)}") from None
        except (KeyboardInterrupt, StartInterruptedError):
            raise
        except BaseException as error:
            raise _raised(f'reading "{name}" of "{path}"', error, place) from None
        path = f"{path}:{name}" if path == target.module else f"{path}.{name}"
    return found


def _call_factory(factory: object, target: Target, place: str) -> object:
    name = f"{target.module}:{target.attribute}"
    if not callable(factory):
        raise ApplicationError(
            f'{place}: "{name}" cannot be called, it is {_describe(factory)}; leave out the () '
            "if it is the application itself"
        )
    try:
        return factory()
    except (KeyboardInterrupt, StartInterruptedError):
        raise
    except TypeError as error:
        if has_application_frames(error):
            raise _raised(f'calling the factory "{name}"', error, place) from None
        raise ApplicationError(
            f'{place}: the factory "{name}" cannot be called without arguments: '
            f"{_message(error)}; write a function that needs none"
        ) from None
    except BaseException as error:
        raise _raised(f'calling the factory "{name}"', error, place) from None


def _check(application: object, target: Target, place: str) -> Application:
    """Refuse what cannot be a WSGI application; what might be one is left to the first request."""
    subject = (
        f'what the factory "{target.text}" returned' if target.is_factory else f'"{target.text}"'
    )
    if not callable(application):
        raise ApplicationError(
            f"{place}: {subject} is not callable, it is {_describe(application)}; a WSGI "
            "application is called with environ and start_response"
        )
    code = _code(application) or _code(type(application).__call__)
    flags = code.co_flags if code is not None else 0
    if flags & _IS_COROUTINE:
        raise ApplicationError(
            f"{place}: {subject} is an asynchronous (ASGI) application; serve-zig serves WSGI, "
            "so wrap it in an adapter or name the WSGI application"
        )
    problem = _argument_problem(application)
    if problem:
        hint = ""
        if isinstance(application, type):
            hint = "; if an instance of it is the application, name that"
        elif not target.is_factory:
            hint = f'; if it is a factory, write "{target.text}()"'
        raise ApplicationError(f"{place}: {subject} is {problem}{hint}")
    return application


def _argument_problem(application: object) -> str:
    """Return why it cannot be called with environ and start_response, where that is known."""
    kind = "a function that"
    functions: list[tuple[object, int]] = [(application, 0)]
    if isinstance(application, MethodType):
        kind, functions = "a method that", [(application.__func__, 1)]
    elif isinstance(application, type):
        if type(application).__call__ is not type.__call__:
            # The metaclass has its own way to make instances.
            return ""
        new: object = application.__new__
        init: object = application.__init__  # type: ignore[misc]
        if new is object.__new__ and init is object.__init__:
            return "a class whose instances are made without arguments"
        kind, functions = "a class that", [(new, 1), (init, 1)]
    elif not isinstance(application, FunctionType):
        kind = f"{_describe(application)} object that"
        functions = [(type(application).__call__, 1)]
    for function, bound in functions:
        what = _unsuitable_arguments(function, bound) if isinstance(function, FunctionType) else ""
        if what:
            return f"{kind} {what}"
    return ""


def _unsuitable_arguments(function: FunctionType, bound: int) -> str:
    """``bound`` arguments come before the two of WSGI: the instance, or the class."""
    code = function.__code__
    if code.co_argcount - bound < 2 and not code.co_flags & _TAKES_ANY_NUMBER:
        return "does not take environ and start_response"
    names = code.co_varnames
    last = code.co_argcount - len(function.__defaults__ or ())
    keyword_only = names[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]
    given = function.__kwdefaults__ or {}
    needed = [*names[bound + 2 : last], *(name for name in keyword_only if name not in given)]
    if needed:
        return f"needs more than environ and start_response: {', '.join(needed)}"
    return ""


def _code(function: object) -> CodeType | None:
    code = getattr(function, "__code__", None)
    return code if isinstance(code, type(load.__code__)) else None


def _raised(action: str, error: BaseException, place: str) -> ApplicationError:
    return ApplicationError(
        f"{place}: {action} raised {type_name(error)}: {_message(error)}",
        detail=format_exception(error),
    )


def _message(error: BaseException) -> str:
    try:
        text = str(error)
    except BaseException:
        return "(no message)"
    first = text.partition("\n")[0][:_MESSAGE_CHARACTERS_MAX]
    return escape_controls(first) or "(no message)"


def _describe(value: object) -> str:
    if value is None:
        return "None"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def _explain_missing(target: Target, missing: str, directory: str, place: str) -> str:
    parent_name, _, name = missing.rpartition(".")
    if not parent_name:
        what = f'no module "{missing}" in {directory} (app.directory), nor elsewhere on sys.path'
        directories = [directory]
    else:
        parent = sys.modules.get(parent_name)
        file = getattr(parent, "__file__", None)
        where = f" ({file})" if file else ""
        directories = list(getattr(parent, "__path__", ()))
        if not directories:
            return f'no module "{missing}": "{parent_name}"{where} is a module, not a package'
        what = f'no module "{missing}": the package "{parent_name}"{where} has no "{name}"'
    guess = nearest(name, _module_names(directories))
    if guess is None:
        key = place.rpartition(": ")[2] or "app.target"
        return f"{what}; mend {key} or app.directory"
    rest = target.module[len(missing) :]
    whole = f"{parent_name}.{guess}{rest}" if parent_name else f"{guess}{rest}"
    return f'{what}; did you mean "{whole}"?'


def _module_names(directories: list[str]) -> Iterator[str]:
    for directory in directories:
        try:
            names = os.listdir(directory)
        except OSError:
            continue
        for entry in names:
            name = entry.removesuffix(".py")
            is_module = name != entry or os.path.isdir(os.path.join(directory, entry))
            if is_module and name.isidentifier() and not name.startswith("_"):
                yield name


def _explain_no_attribute(owner: object, path: str, name: str) -> str:
    file = getattr(owner, "__file__", None)
    where = f" ({file})" if file else ""
    what = f'"{path}"{where} has no "{name}"'
    names = [other for other in dir(owner) if not other.startswith("_")]
    guess = nearest(name, names)
    if guess is None:
        guess = next((usual for usual in _USUAL_NAMES if usual in names), None)
    if guess is None:
        return f"{what}; name the callable that is the application"
    return f'{what}; did you mean "{guess}{"()" if guess in ("create_app", "make_app") else ""}"?'
