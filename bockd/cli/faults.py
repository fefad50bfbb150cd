"""A fault of the REST API (`{"itemNotFound": {"message", "code"}}`) as the BockdError it means."""

from __future__ import annotations

from bockd import errors
from bockd.cli.http import Answer

ERROR_OF_FAULT: dict[str, type[errors.BockdError]] = {
    "badRequest": errors.InvalidRequestError,
    "unauthorized": errors.UnauthorizedError,
    "forbidden": errors.ForbiddenError,
    "itemNotFound": errors.NotFoundError,
    "conflictingRequest": errors.ConflictError,
    "overLimit": errors.OverLimitError,
    "notImplemented": errors.NotSupportedError,
    "serviceUnavailable": errors.UnavailableError,
}

STATE_WORDS = ("Invalid volume: ", "Invalid snapshot: ")
"""How the message of a state error begins, which is a badRequest too. They are for clients of the
API, not for people."""


def error_of_fault(answer: Answer, url: str) -> errors.BockdError:
    """Return the error that an answer reports."""
    import msgspec

    try:
        ((name, detail),) = msgspec.json.decode(
            answer.content, type=dict[str, dict[str, object]]
        ).items()
        message = str(detail["message"])
    except (msgspec.DecodeError, msgspec.ValidationError, ValueError, KeyError):
        return errors.UnavailableError(
            f"{url} answered with status {answer.status} and no fault: is it a block storage API?"
        )
    for words in STATE_WORDS:
        if name == "badRequest" and message.startswith(words):
            return errors.InvalidStateError(message.removeprefix(words))
    if name == "overLimit" and "quota" in message:
        message += "; 'bock limits' shows the quota and what is used of it"
    family = ERROR_OF_FAULT.get(name)
    if family is not None:
        return family(message)
    return errors.BockdError(f"the daemon failed ({message}); its log says why")
