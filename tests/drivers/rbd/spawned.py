"""Background steps of tests that run an operation on one thread."""

from __future__ import annotations

from bockd.runtime.steps import Signal, Steps, Within


def is_stuck(steps: Steps[None]) -> bool:
    """Run steps to their end, or up to where they wait for others: return whether they do."""
    try:
        step = steps.send(None)
        while not isinstance(step, Signal) or step.fired:
            if isinstance(step, Signal):
                step = steps.send(None)
                continue
            if isinstance(step, Within):
                step.wait()
                step = steps.send(None)
                continue
            try:
                result = step.call()  # type: ignore[union-attr]
            except Exception as error:  # noqa: BLE001 - for the steps
                step = steps.throw(error)
            else:
                step = steps.send(result)
    except StopIteration:
        return False
    return True
