"""Byte ranges of shards: files that change or vanish, and few open files."""

# mypy: allow-untyped-defs

import os
import subprocess
import sys
from pathlib import Path

import pytest
import shard_files as shards
from streams import remotes

from ggcn.config.data import DataConfig
from ggcn.data.shard_reader import ShardReader
from ggcn.errors import UserError


def test_a_shard_that_was_restored_as_another_file_is_read_again(tmp_path):
    shards.build(tmp_path, [4])
    (shard,) = remotes(tmp_path)
    data = Path(shard.url).read_bytes()
    reader = ShardReader(DataConfig(retries=0))
    assert reader.read(shard, 512, 10) == data[512:522]
    os.truncate(shard.url, 100)
    with pytest.raises(UserError, match="cannot be read"):
        reader.read(shard, 512, 10)
    (tmp_path / "copy").write_bytes(data)
    os.replace(tmp_path / "copy", shard.url)
    assert reader.read(shard, 512, 10) == data[512:522]
    reader.close()


FEW_FILES = """
import resource, sys
from ggcn.config.data import DataConfig
from ggcn.data import manifest_file
from ggcn.data.remote import RemoteFile
from ggcn.data.shard_reader import ShardReader
from pathlib import Path
folder = Path(sys.argv[1])
shards = [RemoteFile(str(folder / s.name), s.bytes, s.sha256) for s in manifest_file.load(folder).shards]
reader = ShardReader(DataConfig(retries=1, backoff=0.001))
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[2]), int(sys.argv[2])))
print(sum(len(reader.read(shard, 512, 10)) for shard in shards))
"""


def few_files(folder: Path, most: int) -> subprocess.CompletedProcess:
    command = [sys.executable, "-c", FEW_FILES, str(folder), str(most)]
    return subprocess.run(command, capture_output=True, text=True)


def test_a_reader_works_with_few_open_files_and_names_the_limit_when_there_are_none(tmp_path):
    shards.build(tmp_path, [1] * 40)
    assert few_files(tmp_path, 20).stdout == "400\n"
    output = few_files(tmp_path, 3).stderr.splitlines()[-1]
    assert "ulimit -n" in output
    assert "data.workers" in output
