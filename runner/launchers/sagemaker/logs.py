"""The output of training jobs, from CloudWatch Logs: shown here line by line, and kept in a file for each."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

GROUP = "/aws/sagemaker/TrainingJobs"
MOST_PAGES = 20
"""The most pages of a stream to read in one look; the rest waits for the next."""


class LogTail:
    """The log of one training job, all its hosts together.

    Args:
        file: the file that keeps the lines.
        prefix: the prefix of each line that is shown; None shows no lines.
    """

    def __init__(self, client: Any, name: str, file: Path, prefix: str | None) -> None:
        self.client, self.name, self.file, self.prefix = client, name, file, prefix
        self._tokens: dict[str, str] = {}
        self._is_begun = False

    def look(self) -> None:
        """Read what is new. A log that cannot be read is no reason to stop."""
        from botocore.exceptions import BotoCoreError, ClientError

        lines: list[str] = []
        try:
            streams = self._streams()
            for stream in streams:  # lines received before a fault are not sent again
                for line in self._new_lines(stream, hosts=len(streams)):
                    lines.append(line)
        except (BotoCoreError, ClientError) as error:
            log.debug("the log of %s: %s", self.name, error)
        if not lines:
            return
        self.file.parent.mkdir(parents=True, exist_ok=True)
        # Appending to another command's file would repeat its lines: streams are read from their beginning.
        with self.file.open("a" if self._is_begun else "w", encoding="utf-8") as kept:
            self._is_begun = True
            kept.writelines(f"{line}\n" for line in lines)
        if self.prefix is not None:
            for line in lines:
                log.info("%s | %s", self.prefix, line)

    def _streams(self) -> list[str]:
        from botocore.exceptions import ClientError

        try:
            answer = self.client.describe_log_streams(logGroupName=GROUP, logStreamNamePrefix=f"{self.name}/")
        except ClientError as error:
            if error.response["Error"]["Code"] == "ResourceNotFoundException":
                return []  # no output yet
            raise
        return sorted(stream["logStreamName"] for stream in answer["logStreams"])

    def _new_lines(self, stream: str, *, hosts: int) -> Iterator[str]:
        host = f"{stream.rpartition('/')[2].rpartition('-')[0]}: " if hosts > 1 else ""
        for _ in range(MOST_PAGES):
            position = {"nextToken": self._tokens[stream]} if stream in self._tokens else {}
            answer = self.client.get_log_events(
                logGroupName=GROUP, logStreamName=stream, startFromHead=True, **position
            )
            ended = answer["nextForwardToken"] == self._tokens.get(stream)
            self._tokens[stream] = answer["nextForwardToken"]
            yield from [host + event["message"].rstrip("\n") for event in answer["events"]]
            if ended:
                break
