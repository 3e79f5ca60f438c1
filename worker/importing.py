"""From ``--app MODULE[:ATTRIBUTE]`` to the App in it, and what to say where there is none."""

from __future__ import annotations

import importlib
import sys
import traceback
from pathlib import Path

import worker
from worker.app import App
from worker.errors import ConfigurationError, UsageError
from worker.extras import hint

_PACKAGE = Path(worker.__path__[0]).resolve()
#: Apps that the package brings.
_OWN_APPS = ("worker.archive.service",)


class BrokenApp(ConfigurationError):
    """The app's module raised when it was imported. ``user_traceback`` has its author's frames."""

    def __init__(self, text: str, user_traceback: str) -> None:
        super().__init__(text)
        self.user_traceback = user_traceback


def load_app(reference: str) -> App:
    """Import ``MODULE[:ATTRIBUTE]`` and return the App in it.

    The current folder is appended to ``sys.path``, never put first. Raises ConfigurationError
    where there is no such module or attribute, BrokenApp where the module itself raises.
    """
    if not reference:
        raise ConfigurationError("which app? Say --app MODULE[:ATTRIBUTE], or set QWORKER_APP")
    module_name, _, attribute = reference.partition(":")
    _refuse_own_name(module_name, reference)
    if module_name.endswith(".py") or "/" in module_name:
        shown = module_name.removeprefix("./").removesuffix(".py").replace("/", ".")
        raise ConfigurationError(f"--app {reference}: a module, not a file: try --app {shown}")
    if (here := str(Path.cwd())) not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and not f"{module_name}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"--app {reference}: it imports {error.name!r}, which is not installed"
                f"{hint(error.name)}"
            ) from error
        raise ConfigurationError(
            f"--app {reference}: there is no module {error.name!r} in {here} or on sys.path"
        ) from None
    except (ConfigurationError, UsageError):
        raise
    except SystemExit as error:
        raise ConfigurationError(
            f"--app {reference}: importing it called sys.exit({error.code!r}); a module with"
            " handlers must import without ending the program"
        ) from None
    except Exception as error:  # noqa: BLE001 - the user's module may raise anything
        raise _raised(error, reference) from None
    found = getattr(module, attribute or "app", None)
    if isinstance(found, App):
        return found
    apps = [name for name, value in vars(module).items() if isinstance(value, App)]
    others = f"; it has {', '.join(apps)}" if apps else "; it holds no App at all"
    raise ConfigurationError(
        f"--app {reference}: {module_name} has no App named {attribute or 'app'!r}{others}"
    )


def _refuse_own_name(module: str, reference: str) -> None:
    """Say so where the user's module has the name of this package, which is imported already."""
    if module.partition(".")[0] != _PACKAGE.name or module in _OWN_APPS:
        return
    for mine in (Path(f"{_PACKAGE.name}.py"), Path(_PACKAGE.name)):
        if mine.exists() and mine.resolve() != _PACKAGE:
            raise ConfigurationError(
                f"--app {reference}: {mine.resolve()} has the name of qworker's own package:"
                " give it another"
            )


def _raised(error: Exception, reference: str) -> ConfigurationError:
    """Return what is told of an exception of the user's module."""
    if isinstance(error, ValueError) and (place := _refused_at(error)):
        return ConfigurationError(f"--app {reference}: {place}: {error}")
    text = f"--app {reference}: importing it raised {type(error).__name__}: {error}"
    return BrokenApp(text, _user_traceback(error))


def _refused_at(error: BaseException) -> str:
    """Return the user's line whose values this package refused; nothing where it did not.

    As of ``RetryPolicy(attempts=0)``: the error says all but the place.
    """
    frames = traceback.extract_tb(error.__traceback__)
    theirs = [frame for frame in frames if not _is_ours(frame.filename)]
    if not theirs or not Path(frames[-1].filename).is_relative_to(_PACKAGE):
        return ""
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}"


def _user_traceback(error: BaseException) -> str:
    """Return the traceback of ``error`` without the frames of this package and of the importer."""
    told = traceback.TracebackException.from_exception(error)
    part: traceback.TracebackException | None = told
    while part is not None:
        part.stack = traceback.StackSummary.from_list(
            [frame for frame in part.stack if not _is_ours(frame.filename)]
        )
        part = part.__cause__ or part.__context__
    return "".join(told.format()).rstrip()


def _is_ours(filename: str) -> bool:
    return (
        filename.startswith("<frozen importlib")
        or filename == "<string>"  # the __init__ of a dataclass
        or filename.endswith("/importlib/__init__.py")
        or Path(filename).is_relative_to(_PACKAGE)
    )
