"""Every error that this package raises on purpose.

    SegagentError                 one sentence, a hint, an exit code
    ├── InputError                what the user gave cannot be used
    │   ├── ImageUnreadable
    │   ├── ExpressionRefused
    │   ├── ClickOutside
    │   └── DataInvalid           a file of a data set is not what its format says
    ├── OutputError               a result cannot be written
    │   └── TooLittleRoom         the disk or the memory is too small
    ├── HubError                  a hub cannot be reached, refuses, or breaks off
    ├── BundleError               a bundle cannot be used
    │   ├── BundleMissing
    │   ├── ManifestInvalid
    │   ├── FileChanged           missing, truncated or altered
    │   ├── ArchiveInvalid        no packed bundle, or a damaged one
    │   └── EngineRefused         built for another machine, or failed its check
    ├── BackendError              a runtime library cannot be used
    │   ├── BackendMissing
    │   └── BackendUnavailable
    ├── RuntimeClosed             a runtime is closed, or belongs to another process
    ├── ClusterError              a Ray cluster cannot be reached, or lost its workers
    ├── AnnotatorError            a server did not answer, or not in a usable way
    ├── ServeError                a server cannot do what a client asks of it
    │   ├── ServerBusy            too much is waiting; a later try may succeed
    │   └── NotOpen               there is no such image, object or bundle, or no longer
    ├── ExtraMissing              a command needs an extra that is not installed
    ├── GateFailed                a parity or benchmark gate (exit code 3)
    ├── BatchFailed               a part of a batch (exit code 4)
    ├── NoMaskFound               an annotation ended without a mask (exit code 5)
    ├── Interrupted               a deadline passed in the middle of a call
    └── Cancelled                 the user pressed Ctrl-C (exit code 130)

A reply that does not parse is no error: it is a `Malformed` action.
"""

import re
import unicodedata

_TERMINAL_SEQUENCE = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"  # colours, movements of the cursor
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"  # titles, clipboard, links
    r"|\x1b[ -/]*[0-~]?",
    re.DOTALL,
)
_DIRECTIONS = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


def printable(text: str, *, keep: str = "\n\t") -> str:
    """Text that steers no terminal, whatever a bundle, a server or a file put into it.

    Escape sequences go. Other control characters, marks that change the direction of writing and
    halves of surrogate pairs become U+FFFD.

    Args:
        text: any text.
        keep: control characters that stay.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        "\ufffd" if letter not in keep and _steers(letter) else letter
        for letter in _TERMINAL_SEQUENCE.sub("", text)
    )


def _steers(letter: str) -> bool:
    return letter in _DIRECTIONS or unicodedata.category(letter) in ("Cc", "Cs")


def install_hint(extra: str) -> str:
    """The command that installs an extra, from where this package was installed.

    Args:
        extra: a name of `[project.optional-dependencies]` in pyproject.toml.
    """
    import importlib.metadata
    import json
    from pathlib import Path

    root = Path(__file__).parents[1]
    if (root / "pyproject.toml").is_file():
        return f'pip install -e "{root}[{extra}]"'
    try:
        origin = importlib.metadata.distribution("segagent-rt").read_text("direct_url.json")
        url = str(json.loads(origin or "{}")["url"])
    except (importlib.metadata.PackageNotFoundError, ValueError, KeyError, TypeError):
        url = "file:///FOLDER"  # of a checkout, as nothing says where this package came from
    return f'pip install "segagent-rt[{extra}] @ {url}"'


class SegagentWarning(UserWarning):
    """One sentence about a result that may not be what was meant; nothing is stopped."""


class SegagentError(Exception):
    """One sentence about what is wrong, and a hint about what to do."""

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(printable(message))
        self.hint = None if hint is None else printable(hint)


class InputError(SegagentError):
    """What the user gave cannot be used."""


class ImageUnreadable(InputError):
    """No picture can be read from a path."""


class ExpressionRefused(InputError):
    """An expression is blank, too long, or outside what a model knows."""


class ClickOutside(InputError):
    """A click does not lie in the picture."""


class DataInvalid(InputError):
    """A file of a data set is not what its format says."""


class OutputError(SegagentError):
    """A result cannot be written."""


class TooLittleRoom(OutputError):
    """The disk or the memory does not hold what a command needs."""


class HubError(SegagentError):
    """A hub cannot be reached, refuses, breaks off, or sends something else than it listed."""


class BundleError(SegagentError):
    """A bundle cannot be used."""


class BundleMissing(BundleError):
    """There is no bundle of that name or path."""


class ManifestInvalid(BundleError):
    """A manifest is not what its schema says."""


class FileChanged(BundleError):
    """A file of a bundle is missing, or not the one that its manifest names."""


class ArchiveInvalid(BundleError):
    """A file is no packed bundle, or a damaged one."""


class EngineRefused(BundleError):
    """An engine was built for another machine or library, or failed its check."""


class BackendError(SegagentError):
    """A runtime library cannot be used."""


class BackendMissing(BackendError):
    """A runtime library is not installed."""


class BackendUnavailable(BackendError):
    """A runtime library is installed, but does not work here."""


class RuntimeClosed(SegagentError):
    """A runtime or a graph was closed, or belongs to another process."""


class ClusterError(SegagentError):
    """A Ray cluster cannot be reached, is too small, or lost its workers."""


class AnnotatorError(SegagentError):
    """An annotator's server did not answer, or not in a usable way."""


class ServeError(SegagentError):
    """A server cannot do what a client asks of it."""


class ServerBusy(ServeError):
    """Too much is waiting already.

    Attributes:
        retry_after: seconds after which another try makes sense.
    """

    def __init__(self, message: str, *, retry_after: int = 1) -> None:
        super().__init__(message, hint=f"try again in {retry_after} s")
        self.retry_after = retry_after


class NotOpen(ServeError):
    """There is no such image, object or bundle, or no longer."""


class ExtraMissing(SegagentError):
    """A command needs an extra that is not installed."""

    def __init__(self, command: str, extra: str) -> None:
        super().__init__(
            f"`segagent-rt {command}` needs packages that are not installed",
            hint=install_hint(extra),
        )


class GateFailed(SegagentError):
    """Something was measured and is not good enough."""

    exit_code = 3


class BatchFailed(SegagentError):
    """Some items of a batch failed; the others are done."""

    exit_code = 4


class NoMaskFound(SegagentError):
    """An annotation ended without a mask, or with an empty one."""

    exit_code = 5


class Interrupted(SegagentError):
    """A call was stopped because its deadline passed."""


class Cancelled(SegagentError):
    """The user stopped a command."""

    exit_code = 130
