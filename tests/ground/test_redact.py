"""Credentials do not reach what others read."""

import logging

import pytest

from ggcn.errors import UserError
from ggcn.redact import Formatter, redact, shard_folder


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("https://me:pw@host/a/b", "https://***@host/a/b"),
        ("https://me:p@w@host/a", "https://***@host/a"),
        ("s3://KEY:SECRET@bucket/x cannot be read", "s3://***@bucket/x cannot be read"),
        ("https://h/x?X-Amz-Signature=ab&sv=2 cannot be read (why)", "https://h/x?*** cannot be read (why)"),
        ("shards in 'https://h/x?sig=ab%2B', not", "shards in 'https://h/x?***', not"),
        ("see https://h/x?sig=ab.", "see https://h/x?***."),
        ("export HF_TOKEN=abc", "export HF_TOKEN=***"),
        ("export AWS_SECRET_ACCESS_KEY='abc'", "export AWS_SECRET_ACCESS_KEY='***'"),
        ("pipe:curl -H 'Authorization: Bearer abc' h", "pipe:curl -H 'Authorization: Bearer ***' h"),
        ("pipe:curl -u me:pw h", "pipe:curl -u me:*** h"),
        ("srun python3 -u -m submitit.core._submit", "srun python3 -u -m submitit.core._submit"),
        ("train.steps=5 at step_00000010, run=a@b", "train.steps=5 at step_00000010, run=a@b"),
        ("https://host/a?b", "https://host/a?***"),
        ("https://me:p/w@host/a", "https://***@host/a"),
        ("http://host:80/a@3", "http://host:80/a@3"),
        ("--token abc --step 5", "--token *** --step 5"),
        ("--password 'a b' h", "--password '***' h"),
        ("curl -ume:pw h", "curl -ume:*** h"),
        ("curl -sSu me:pw h", "curl -sSu me:*** h"),
        ("X-Auth-Key: abc", "X-Auth-Key: ***"),
        ("password: abc", "password: ***"),
        ("python 'API_KEY=a b' --step 5", "python 'API_KEY=***' --step 5"),
        ("API_KEY: abc", "API_KEY: ***"),
        ('{"token": "a b", "step": 1}', '{"token": "***", "step": 1}'),
        ("HF_TOKEN='a b' python", "HF_TOKEN='***' python"),
        ("Cookie: a=b; c=d", "Cookie: ***"),
        ("curl -H 'Cookie: a=b; c=d' h", "curl -H 'Cookie: ***' h"),
        ("Authorization: AWS key:abc", "Authorization: AWS ***"),
        ('-H \'Authorization: Digest username="m", response="a"\' h', "-H 'Authorization: Digest ***' h"),
        ("{'Authorization': 'Bearer abc', 'step': 1}", "{'Authorization': 'Bearer ***', 'step': 1}"),
        ("Authorization: abc\nnext", "Authorization: ***\nnext"),
        ("NoCredentialsError: Unable to locate", "NoCredentialsError: Unable to locate"),
        ("tokenizer: bpe, --use-token --other", "tokenizer: bpe, --use-token --other"),
        ("https://host:8080/a/b.tar", "https://host:8080/a/b.tar"),
    ],
)
def test_text_is_shown_without_credentials(text: str, shown: str) -> None:
    assert redact(text) == shown
    assert str(UserError(text)) == shown


def test_a_command_is_shown_by_its_program() -> None:
    assert shard_folder("pipe:aws s3 cp --key abc s3://b/{} -") == "pipe:aws ***"
    assert shard_folder("pipe:AWS_SECRET_ACCESS_KEY=abc123 aws s3 cp s3://b/{} -") == "pipe:aws ***"
    assert shard_folder("pipe:env -i KEY='a b' aws s3 cp") == "pipe:aws ***"
    assert shard_folder("pipe:KEY=abc;aws s3 cp") == "pipe:aws ***"
    assert shard_folder("pipe:KEY='abc") == "pipe:***"
    assert shard_folder("https://me:pw@h/x?sig=1") == "https://***@h/x?***"
    assert shard_folder("shards/faces") == "shards/faces"


def test_a_log_line_and_its_traceback_hold_no_credentials() -> None:
    record = logging.LogRecord("ggcn", logging.ERROR, "", 0, "%s failed", ("https://me:pw@h/x",), None)
    try:
        raise OSError("https://me:pw@h/y?sig=secret")
    except OSError as error:
        record.exc_info = type(error), error, error.__traceback__
    line = Formatter("%(message)s").format(record)
    assert line.startswith("https://***@h/x failed")
    assert "https://***@h/y?***" in line
    assert "pw" not in line
