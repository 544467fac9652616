"""Objects in a bucket, by the client that Amazon keeps for its own protocol: large ones in parts, failures retried."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import boto3
from boto3.exceptions import Boto3Error
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError


class S3Objects:
    """See Objects. `endpoint`: URL of a service other than Amazon's; None: Amazon's. Keys and region: as boto3 has them
    (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, profiles, roles of the machine).
    """

    def __init__(self, bucket: str, prefix: str, endpoint: str | None) -> None:
        self._bucket = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        retries: Any = {"max_attempts": 5, "mode": "standard"}
        self._client: Any = boto3.client(
            "s3", endpoint_url=endpoint, config=Config(retries=retries, connect_timeout=10, read_timeout=60)
        )

    def has(self, key: str) -> bool:
        """See Objects."""
        try:
            self._client.head_object(Bucket=self._bucket, Key=self._prefix + key)
        except ClientError as error:
            if _is_missing(error):
                return False
            raise OSError(f"the object store failed: {error}") from error
        except BotoCoreError as error:
            raise OSError(f"the object store does not answer: {error}") from error
        return True

    def put(self, key: str, source: Path) -> None:
        """See Objects."""
        try:
            self._client.upload_file(str(source), self._bucket, self._prefix + key)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise OSError(f"the object store takes nothing: {error}") from error

    def get(self, key: str, target: Path) -> bool:
        """See Objects."""
        try:
            self._client.download_file(self._bucket, self._prefix + key, str(target))
        except ClientError as error:
            if _is_missing(error):
                return False
            raise OSError(f"the object store failed: {error}") from error
        except (BotoCoreError, Boto3Error) as error:
            raise OSError(f"the object store does not answer: {error}") from error
        return True


def _is_missing(error: ClientError) -> bool:
    return str(error.response.get("Error", {}).get("Code")) in ("404", "NoSuchKey", "NotFound")
