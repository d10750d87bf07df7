"""Why a hub did not give something, in one sentence with a hint.

Three generations of `huggingface_hub` raise the classes of three HTTP libraries. What they have
in common is the response they carry and its status.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from segagent_rt.errors import HubError, SegagentError, TooLittleRoom
from segagent_rt.hub.repository import HubRepository

LOGIN = {
    "hf": "set HF_TOKEN to a valid token, or log in again: hf auth login",
    "ms": "set MODELSCOPE_API_TOKEN to a valid token, or log in again: modelscope login",
}
FULL = (errno.ENOSPC, errno.EDQUOT)
NO_SPACE = "No space left on device"
"""How the Xet client, which raises no OSError, names a full disk."""

REFUSED = frozenset({401, 403, 404, 416})
"""Statuses that another try does not change."""


@contextmanager
def explained(repository: HubRepository, *, with_token: bool) -> Iterator[None]:
    """Turn what a hub's client raises into one sentence.

    Args:
        repository: that is asked for.
        with_token: whether the client sends a token.

    Raises:
        HubError: the hub cannot be reached, refuses or breaks off.
        TooLittleRoom: the disk is full.
    """
    try:
        yield
    except SegagentError:
        raise
    except Exception as error:
        raise explain(repository, error, with_token=with_token) from error


def explain(repository: HubRepository, error: Exception, *, with_token: bool) -> SegagentError:
    """The error for what a hub's client raised."""
    reasons = list(_chain(error))
    if any(getattr(e, "errno", None) in FULL or NO_SPACE in str(e) for e in reasons):
        return TooLittleRoom(
            f"the disk is full before all of {repository} is there",
            hint="free some space and run the command again; finished files are kept",
        )
    if any(type(e).__name__ == "OfflineModeIsEnabled" for e in reasons):
        return HubError(
            f"{repository} is not on this machine, and HF_HUB_OFFLINE forbids to download it",
            hint="unset HF_HUB_OFFLINE, or copy the model's files to this machine",
        )
    for reason in reasons:
        response = getattr(reason, "response", None)
        status = getattr(response, "status_code", None) or getattr(reason, "status_code", None)
        if isinstance(status, int):
            code = str(getattr(response, "headers", {}).get("X-Error-Code", ""))
            return _refused(repository, status, code, with_token=with_token)
    if any(type(e).__name__ == "HFValidationError" for e in reasons):
        return HubError(f"{repository} is not a name that the hub allows")
    said = " ".join(str(reasons[-1]).split())[:120] or type(reasons[-1]).__name__
    return HubError(
        f"the download of {repository} was interrupted: {said}",
        hint="run the command again; finished files are kept",
    )


def is_passing(error: Exception) -> bool:
    """Whether another try may succeed: a connection that broke, a server that was busy."""
    reasons = list(_chain(error))
    if any(getattr(e, "errno", None) in FULL or NO_SPACE in str(e) for e in reasons):
        return False
    if any(type(e).__name__ in ("OfflineModeIsEnabled", "HFValidationError") for e in reasons):
        return False
    found = (getattr(getattr(e, "response", None), "status_code", None) for e in reasons)
    return not any(status in REFUSED for status in found)


def _chain(error: BaseException) -> Iterator[BaseException]:
    """An error and what it was raised from."""
    found: BaseException | None = error
    for _ in range(10):
        if found is None:
            return
        yield found
        found = found.__cause__ or found.__context__


def _refused(
    repository: HubRepository, status: int, code: str, *, with_token: bool
) -> SegagentError:
    """Hugging Face says in a header why; it answers 401 about what does not exist, too."""
    if code == "GatedRepo" or status == 403:
        return HubError(
            f"the hub refuses access to {repository}",
            hint=f"accept the model's licence on {repository.page}, then "
            + LOGIN[repository.hub].replace("again: ", "with: "),
        )
    if status == 404 or code in ("RepoNotFound", "RevisionNotFound"):
        hint = "check owner, name and revision"
        return HubError(
            f"the hub has no {repository}",
            hint=hint if with_token else f"{hint}; a private model needs a token",
        )
    if status == 401:
        if with_token:
            return HubError(
                f"the hub refuses the token that it was given for {repository}",
                hint=LOGIN[repository.hub],
            )
        return HubError(f"the hub has no public {repository}", hint=LOGIN[repository.hub])
    return HubError(
        f"the hub answers {status} about {repository}",
        hint="run the command again in a moment; finished files are kept",
    )
