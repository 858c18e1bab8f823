"""An S3 server on loopback: moto's, as a process of its own."""

import json
import os
import subprocess
import sys
import time
from types import TracebackType
from typing import Self
from urllib.request import Request, urlopen
from uuid import uuid4

import boto3

from infra.devserver.ports import LOOPBACK, free_ports
from infra.devserver.process import LEASH

START_SECONDS = 180.0


def policy(**statement: str) -> str:
    return json.dumps({"Version": "2012-10-17", "Statement": [{"Effect": "Allow", **statement}]})


class S3Server:
    """Use as a context manager. Anyone may do anything in it, except within ``only_known_keys``."""

    def __enter__(self) -> Self:
        port = next(free_ports())
        self.url = f"http://{LOOPBACK}:{port}"
        self._process = subprocess.Popen(
            # On the leash: a Ctrl-C doesn't run __exit__ in the workers.
            [
                *(sys.executable, "-I", "-S", str(LEASH), str(os.getpid())),
                *(sys.executable, "-m", "moto.server", "-H", LOOPBACK, "-p", str(port)),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env={name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "MOTO_"))},
        )
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            assert self._process.poll() is None, "moto's server ended"
            assert time.monotonic() < deadline, "moto's server doesn't answer"
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait(60)

    @property
    def environment(self) -> dict[str, str]:
        """What a client's environment has to say, as it would of any server that isn't Amazon's."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": "anybody",
            "AWS_SECRET_ACCESS_KEY": "anything",
            "AWS_REGION": "us-east-1",
        }

    def client(self, service: str = "s3") -> "boto3.client":
        return boto3.client(
            service,
            endpoint_url=self.url,
            region_name="us-east-1",
            aws_access_key_id="anybody",
            aws_secret_access_key="anything",
        )

    def keys(self, bucket: str) -> list[str]:
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket)
        return [entry["Key"] for page in pages for entry in page.get("Contents", ())]

    def publish(self, bucket: str) -> None:
        """Let everybody read the bucket's objects."""
        everybody = policy(Principal="*", Action="s3:GetObject", Resource=f"arn:aws:s3:::{bucket}/*")
        self.client().put_bucket_policy(Bucket=bucket, Policy=everybody)

    def new_key(self) -> tuple[str, str]:
        """The id and the secret of a key that may do everything."""
        iam = self.client("iam")
        user = f"shrinkstream-{uuid4().hex[:8]}"  # the server is there for all tests
        iam.create_user(UserName=user)
        everything = policy(Action="s3:*", Resource="*")
        iam.put_user_policy(UserName=user, PolicyName="all", PolicyDocument=everything)
        key = iam.create_access_key(UserName=user)["AccessKey"]
        return key["AccessKeyId"], key["SecretAccessKey"]

    def ask_for_keys(self, *, ask: bool) -> None:
        """From now on each request needs (or doesn't need) a known key and a right signature."""
        count = b"0" if ask else b"inf"  # requests that are taken without
        urlopen(Request(f"{self.url}/moto-api/reset-auth", count, {"Content-Type": "text/plain"}), timeout=60).close()

    def _answers(self) -> bool:
        try:
            urlopen(f"{self.url}/moto-api/data.json", timeout=5).close()
        except OSError:
            return False
        return True
