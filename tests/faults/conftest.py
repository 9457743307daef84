"""The storages of ``tests/store``, for faults that need more than a second."""

from tests.store.conftest import boto3_client, s3_server, value_of, write

__all__ = ["boto3_client", "s3_server", "value_of", "write"]
