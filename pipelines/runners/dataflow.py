"""What is particular to Google's Dataflow: what can be checked at launch, and a job that is left in a file.

A Flex Template's launcher asks for such a file, by ``--template_location``, and starts the job from it: see
``docker/flex_launch.py``. The plan is in the output by then, and workers find it there; when they have made
the manifest, the same command without a template says that the run is complete.
"""

import re
from typing import Any

from vqgan import filesystems
from vqgan.errors import Postponed, UserError, first_line
from vqgan.extras import require_extra

BUCKET_SECONDS = 20
"""How long Google's storage is asked for a bucket."""
PROJECT = re.compile(r"(?:[a-z0-9.-]+:)?[a-z][a-z0-9-]{4,28}[a-z0-9]")
"""Of Google's projects: the id, not the name or number, in an older account behind a domain."""


def check_template(runner: str, given: Any) -> None:
    """Ends a launch whose job was not started but written to a file.

    Args:
      runner: its name in lower case, without the word runner.
      given: what Beam's option classes make of the flags.

    Raises:
      Postponed: it was.
    """
    if runner == "dataflow" and given.template_location:
        raise Postponed(f"{given.template_location}: the job is in this file; nothing has run yet")


def check_dataflow(given: Any) -> None:
    """Refuses a run without the extra, a project that cannot be one, and a bucket that is not there.

    Without a bucket Beam would create one in the midst of its checks.

    Args:
      given: what Beam's option classes make of the flags.

    Raises:
      UserError: one of them, or a flag is missing.
    """
    require_extra("gcp", f"--runner {given.runner}")
    if not given.project or not (given.temp_location or given.staging_location):
        raise UserError(f"--runner {given.runner}: needs --project=ID and --temp_location=gs://BUCKET/FOLDER")
    if not PROJECT.fullmatch(str(given.project)):
        raise UserError(f"--project {given.project}: is no id of a project, such as my-project-123")
    for flag in ("temp_location", "staging_location"):
        location = getattr(given, flag)
        if location:
            bucket = str(location).removeprefix("gs://").partition("/")[0]
            _check_bucket(f"--{flag} {location}", f"gs://{bucket}")


def _check_bucket(what: str, bucket: str) -> None:
    try:
        there = filesystems.exists(f"{bucket}?retry_limit_seconds={BUCKET_SECONDS}")
    except UserError as error:
        raise UserError(f"{what}: the bucket cannot be reached ({first_line(error)})") from error
    if not there:
        raise UserError(f"{what}: there is no bucket {bucket}; create it, or correct its name")
