"""Everything between us and MLflow; besides `jobs.voice_model` the only place that imports it.

What was trained and how it went goes to `runs` (`Tracker`), what may be spoken with to the `registry` (`Registry`). One
experiment per corpus, in it a parent run per `onboard` and a child run per voice; a registered model per voice, a
version per run. Everything is found again by the run's own id, so that whatever was cut off is finished by doing it
again, and what is there is left alone.
"""

from jobs.tracking.environment import (
    LOCK_NAME,
    PACKAGES,
    TEXT_PACKAGES,
    code_digest,
    environment,
    installed_versions,
    lock_digest,
)
from jobs.tracking.registry import (
    CHALLENGER,
    CHAMPION,
    FILES_NAME,
    Move,
    RegisteredVersion,
    Registry,
    Traces,
    VoicePackage,
)
from jobs.tracking.runs import DIGEST_DIGITS, ENVIRONMENT_NAME, STATE_TAG, Tracker
from jobs.tracking.spool import Line, Spool
from jobs.tracking.store import (
    REPORT_FOLDER,
    RUN_ID_TAG,
    Address,
    Store,
    TrackingError,
    check_reachable,
    set_defaults,
    without_password,
)

__all__ = [
    "CHALLENGER",
    "CHAMPION",
    "DIGEST_DIGITS",
    "ENVIRONMENT_NAME",
    "FILES_NAME",
    "LOCK_NAME",
    "PACKAGES",
    "REPORT_FOLDER",
    "RUN_ID_TAG",
    "STATE_TAG",
    "TEXT_PACKAGES",
    "Address",
    "Line",
    "Move",
    "RegisteredVersion",
    "Registry",
    "Spool",
    "Store",
    "Traces",
    "Tracker",
    "TrackingError",
    "VoicePackage",
    "check_reachable",
    "code_digest",
    "environment",
    "installed_versions",
    "lock_digest",
    "set_defaults",
    "without_password",
]
